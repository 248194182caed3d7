"""What the look at a task finds out: whether threads may compute its pieces."""

import pytest
from test_own_model import ODD

from sinlstm_dist.config import load_config
from sinlstm_dist.new_task import new_task
from sinlstm_dist.probe import Probed, probe
from sinlstm_dist.processes.world import World
from sinlstm_dist.splits import splits

# They keep activations in an attribute, in a dict that a hook writes to, in a list in evaluation
# mode, in a dict of a dict, in an object, in a variable outside.
KEEPERS = ["remembers", "hooked", "listed", "keeps_nested", "keeps_in_object", "keeps_outside"]


def probed(name: str, world: World) -> Probed:
    config = load_config(overrides={"task.build": f"{ODD}:{name}"})
    task, _ = new_task(config, world)
    world.prepare_model(task.model)
    task.model.train()
    return probe(task, splits(task, config, world)[0], config, world)


@pytest.mark.parametrize("name", ["plain", "tokens", "unused", "masked", "group_norm"])
def test_threads_compute_what_leaves_no_trace(name, world):
    assert probed(name, world).fits_threads


@pytest.mark.parametrize("name", [*KEEPERS, "dropout"])
def test_threads_share_no_generator_and_no_attribute(name, world):
    assert not probed(name, world).fits_threads
