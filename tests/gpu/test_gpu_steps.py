"""A training step makes the processor wait for the GPU only where it must."""

import warnings

import pytest
import torch
from gpu_runs import DEVICE, TRAINED

from sinlstm_dist import job
from sinlstm_dist.config import load_config

STEPS = 5
# The batch is sent, two tensors in each of at most eight pieces, and the totals are read.
ALLOWED = {"accelerate/utils/operations.py": 2 * 8 * STEPS, "sinlstm_dist/gradient.py": STEPS}


@pytest.mark.parametrize("name", ["torch", "fused", "shared out", "own model"])
def test_a_step_waits_for_nothing_else(name, world, tmp_path):
    settings = {**TRAINED[name], "output.dir": str(tmp_path / "run")}
    assert world.device.type == DEVICE
    built = job.build(load_config(overrides=settings), world)
    batches = built.train.batches(whole=built.gradient.is_whole)

    def take_a_step() -> None:
        step, batch = next(batches)
        built.gradient(batch, epoch=0, step=step, stop=False)
        built.update(step)

    take_a_step()  # the first one sends what all others use
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(STEPS):
                take_a_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [
        each for each in caught if "called a synchronizing CUDA operation" in str(each.message)
    ]
    counts = {path: sum(each.filename.endswith(path) for each in waits) for path in ALLOWED}
    all_of_them = [f"{each.filename}:{each.lineno}" for each in waits]
    assert sum(counts.values()) == len(waits), all_of_them
    assert all(counts[path] <= most for path, most in ALLOWED.items()), all_of_them
    assert counts["sinlstm_dist/gradient.py"] == STEPS, "the mode finds no waiting at all"
