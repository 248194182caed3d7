"""Join the processes that the launcher started, and leave them cleanly."""

import contextlib
import functools
import socket
import traceback
from collections.abc import Callable, Iterator

from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.accelerator import check_variables, gpu_of, joined_accelerator
from sinlstm_dist.processes.gathering import share_memory
from sinlstm_dist.processes.roll_call import RollCall
from sinlstm_dist.processes.waiting import Waiting
from sinlstm_dist.processes.world import World


@contextlib.contextmanager
def join_world(
    *, timeout_s: float, one_thread: bool, stop_reason: Callable[[], str] = lambda: ""
) -> Iterator[World]:
    """Join the processes that the launcher started, and leave them cleanly at the end.

    Args:
        timeout_s: seconds that a process waits for the others.
        one_thread: whether torch computes with a single thread, as bit-identical results need.
        stop_reason: called while this process waits for others to start; a text that it returns
            says why to stop.

    Raises:
        ConfigError: the world is not what the launcher meant.
        StoppedEarly: a process was asked to stop before all had started.
        LostProcess: another process did not start, died, failed or hangs.
    """
    launch = launcher.check_launch()
    check_variables()
    join = functools.partial(joined_accelerator, launch, timeout_s=timeout_s, one_thread=one_thread)
    if launch.size == 1:
        with _staying(), join(store=None) as accelerator:
            yield World(accelerator, hosts=[socket.gethostname()])
        return
    roll_call = RollCall(launch, timeout_s=timeout_s, stop_reason=stop_reason, gpu=gpu_of(launch))
    try:
        with join(store=roll_call.new_store()) as accelerator:
            waiting = Waiting(accelerator.device, timeout_s=timeout_s, has_lost=roll_call.has_lost)
            world = World(
                accelerator,
                hosts=roll_call.hosts,
                wait_for_device=waiting,
                limited=waiting.limited,
            )
            with _reporting(world, roll_call), waiting.watched(), _staying():
                _share_memory(world, roll_call, waiting)
                yield world
                world.wait_for_everyone()  # leaving a group that others use aborts them
    except Exception as error:
        verdict = roll_call.verdict(error)
        if verdict is error:
            raise
        raise verdict from error


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """Let sys.exit() be an error: the exit code 0 would say that all is done."""
    try:
        yield
    except SystemExit as leaving:
        raise RuntimeError(f"sys.exit({leaving.code!r}) before the end") from leaving


def _share_memory(world: World, roll_call: RollCall, waiting: Waiting) -> None:
    """Let the world's CPU processes gather through memory, if they can. Collective: yes."""
    if world.device.type == "cpu":
        world.shared = share_memory(
            roll_call.machines,
            rank=world.rank,
            gather_json=world.gather_json,
            wait=waiting.until,
        )


@contextlib.contextmanager
def _reporting(world: World, roll_call: RollCall) -> Iterator[None]:
    """Tell the others of an error, and let go of what keeps connections to them open."""
    try:
        yield
    except Exception as error:
        roll_call.report(error)
        # The traceback's variables keep the group's connections open after it is left, so peers
        # that wait for this process would never notice.
        # Test: test_all_learn_of_it_at_once[ordered]
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        world.release_wrappers()
