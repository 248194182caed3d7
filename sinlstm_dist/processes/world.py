"""The processes of a run: joined, checked against what the launcher meant, and left cleanly.

Everything that processes say to each other goes through a `World`, which is Accelerate's
`Accelerator` and the few collectives that the run needs.
"""

import contextlib
import functools
import hashlib
import json
import socket
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Its functions have the group of all processes as default values: imported after joining, as by
# torch's data-parallel wrapper, they would keep its threads and connections forever.
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from sinlstm_dist.errors import ConfigError, Disagreement, RunError
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.accelerator import joined_accelerator
from sinlstm_dist.processes.roll_call import RollCall


@dataclass(frozen=True)
class Difference:
    """A fact on which processes do not agree.

    Args:
        fact: its name.
        ranks: the processes that differ from most others; in two halves, those that differ from
            rank 0.
        reference: one of the others.
    """

    fact: str
    ranks: Sequence[int]
    reference: int


class World:
    """All processes of a run, seen from one of them.

    Methods marked `Collective:` must be called by every process.
    """

    def __init__(self, accelerator: Accelerator, *, hosts: Sequence[str]) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device
        self.hosts = hosts  # by rank
        self.num_threads = launcher.num_threads()
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

    def prepare_model(self, model: nn.Module, *, data_parallel: bool) -> nn.Module:
        """The model on this process's device, and in Accelerate's data-parallel wrapper if asked.

        Collective: yes.
        """
        # Left to decide whether it should go there, Accelerate imports DTensor for an answer: 0.6 s
        prepared: nn.Module = self.accelerator.prepare_model(
            model, device_placement=True, evaluation_mode=not data_parallel
        )
        if isinstance(prepared, DistributedDataParallel):
            self._wrappers.add(prepared)
        return prepared

    def let_go(self) -> None:
        """Take from data-parallel wrappers what keeps this process's connections open: they may
        live longer than the world, and others would wait for a process that has left it.
        """
        for wrapper in self._wrappers:
            for part in ("reducer", "logger", "process_group"):
                vars(wrapper).pop(part, None)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """All processes' rows, in order of rank.

        Args:
            rows: (N, ...), of the same shape on every process.

        Returns:
            (world_size * N, ...).

        Collective: yes; none is needed, and none done, in a world of one.
        """
        return self.accelerator.gather(rows) if self.size > 1 else rows

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum of all processes' values, in an order of the backend's choice.

        Collective: yes.
        """
        return self.accelerator.reduce(values, reduction="sum")

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """The main process's values, written into those of every other process.

        Collective: yes.
        """
        return broadcast(values) if self.size > 1 else values

    def gather_json(self, value: Any) -> list[Any]:
        """What every process says, in order of rank; each value must be what JSON can say.

        Collective: yes, two.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(text)], device=self.device)).tolist()
        padded = torch.zeros(1, max(lengths), dtype=torch.uint8, device=self.device)
        padded[0, : len(text)] = text
        rows = self.gather(padded).cpu().numpy()
        return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]

    def on_main(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call `function` on the main process only; every process gets what it returns.

        An error there becomes the same error everywhere, so that none waits for the others.

        Returns:
            the function's result, which must be what JSON can say.

        Raises:
            ConfigError: the function's.
            RunError: in place of the function's OSError.

        Collective: yes.
        """
        answer: dict[str, Any] = {}
        if self.is_main:
            try:
                answer["result"] = function(*arguments, **keywords)
            except ConfigError as error:
                answer["config_error"] = str(error)
            except OSError as error:
                what = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
                answer["run_error"] = f"{what}; fix that and run the same command again to continue"
        answer = self._broadcast_json(answer)
        if "config_error" in answer:
            raise ConfigError(answer["config_error"])
        if "run_error" in answer:
            raise RunError(answer["run_error"])
        return answer["result"]

    def tensors_from_main(
        self, function: Callable[..., Mapping[str, torch.Tensor]], *arguments: Any, **keywords: Any
    ) -> dict[str, torch.Tensor]:
        """Call `function` on the main process only; every process gets copies of its tensors.

        Args:
            function: as for `on_main`, but it returns tensors of any shape and dtype by name.

        Returns:
            the tensors by name, on the CPU.

        Raises:
            ConfigError: the function's.
            RunError: in place of the function's OSError.

        Collective: yes.
        """
        mine: dict[str, torch.Tensor] = {}

        def shapes() -> dict[str, tuple[str, list[int]]]:
            mine.update(function(*arguments, **keywords))
            return {
                name: (str(value.dtype).removeprefix("torch."), list(value.shape))
                for name, value in mine.items()
            }

        received = {}
        for name, (dtype, shape) in self.on_main(shapes).items():
            kind = getattr(torch, dtype)
            value = mine[name] if self.is_main else torch.empty(shape, dtype=kind)
            data = value.reshape(-1).contiguous().view(torch.uint8)  # not all backends send all
            data = self.broadcast(data.to(self.device, copy=True)).cpu()
            received[name] = data.view(kind).reshape(shape)
        return received

    def broadcast_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's float32 tensors, on every process's CPU.

        Collective: yes.
        """
        if self.size == 1:
            return tensors
        shapes = self._broadcast_json({name: list(value.shape) for name, value in tensors.items()})
        received = {}
        for name, shape in shapes.items():
            value = tensors[name] if self.is_main else torch.empty(shape)
            received[name] = self.broadcast(value.to(self.device, copy=True).contiguous()).cpu()
        return received

    def check_same(self, **facts: str) -> None:
        """Refuse a world whose processes do not agree on `facts`.

        Raises:
            Disagreement: names the first fact that differs, and the ranks whose is another one.

        Collective: yes, one.
        """
        if found := self.difference(facts):
            raise Disagreement(
                f"{found.fact} differs from rank {found.reference}'s on {self.names(found.ranks)}: "
                "make it the same"
            )

    def difference(self, facts: Mapping[str, str]) -> Difference | None:
        """The first of some facts on which not all processes agree, if there is one.

        Collective: yes, one.
        """
        digests = [hashlib.sha256(fact.encode()).digest() for fact in facts.values()]
        mine = torch.tensor([list(row) for row in digests], dtype=torch.uint8, device=self.device)
        everyones = self.gather(mine[None]).cpu()  # (world_size, facts, 32)
        for number, name in enumerate(facts):
            groups: dict[bytes, list[int]] = {}
            for rank, rows in enumerate(everyones):
                groups.setdefault(rows[number].numpy().tobytes(), []).append(rank)
            most = max(groups.values(), key=len)  # of equal ones the first: rank 0's
            others = [rank for rank in range(self.size) if rank not in most]
            if others:
                return Difference(name, ranks=others, reference=most[0])
        return None

    def names(self, ranks: Sequence[int]) -> str:
        """Processes as a person finds them: `rank 1 on node2, 3 on node4`."""
        return "rank " + ", ".join(f"{rank} on {self.hosts[rank]}" for rank in ranks)

    def _broadcast_json(self, value: Any) -> Any:
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = self.broadcast(torch.tensor([len(text)], device=self.device))
        payload = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            payload.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return json.loads(bytes(self.broadcast(payload).cpu().numpy()))


@contextlib.contextmanager
def join_world(
    *, timeout_s: float, one_thread: bool, stop_reason: Callable[[], str] = lambda: ""
) -> Iterator[World]:
    """Join the processes that the launcher started, and leave them cleanly at the end.

    Args:
        timeout_s: seconds that a process waits for the others.
        one_thread: whether torch computes with a single thread, as bit-identical results need.
        stop_reason: called while others have not started yet; what asked this process to stop, or
            the empty string.

    Raises:
        ConfigError: the world is not what the launcher meant.
        StoppedEarly: some process was asked to stop before all had started.
        LostProcess: another process did not start, died, failed or hangs.
    """
    launch = launcher.check_launch()
    joined = functools.partial(_joined, launch, timeout_s=timeout_s, one_thread=one_thread)
    if launch.size == 1:
        with joined(store=None, hosts=[socket.gethostname()]) as world:
            yield world
        return
    roll_call = RollCall(
        rank=launch.rank, size=launch.size, timeout_s=timeout_s, stop_reason=stop_reason
    )
    try:
        with joined(store=roll_call.new_store(), hosts=roll_call.hosts) as world:
            try:
                yield world
                world.accelerator.wait_for_everyone()  # leaving a group that others use aborts them
            except Exception as error:
                roll_call.report(error)
                # The stack's variables keep the group's connections open after it is left, and
                # so keep those in the dark who wait for this process and not for the lost one.
                traceback.clear_frames(error.__traceback__)
                raise
    except Exception as error:
        verdict = roll_call.verdict(error)
        if verdict is error:
            raise
        raise verdict from error


@contextlib.contextmanager
def _joined(
    launch: launcher.Launch,
    *,
    timeout_s: float,
    one_thread: bool,
    store: Store | None,
    hosts: Sequence[str],
) -> Iterator[World]:
    """A world set up for exact work, and left at the end."""
    threads = torch.get_num_threads()
    if one_thread:
        torch.set_num_threads(1)  # before any tensor work: the number of threads changes bits
    try:
        with joined_accelerator(launch, timeout_s=timeout_s, store=store) as accelerator:
            if one_thread:
                torch.set_num_threads(1)  # Accelerate sets it from the number of cores
            world = World(accelerator, hosts=hosts)
            try:
                yield world
            finally:
                world.let_go()
    finally:
        torch.set_num_threads(threads)
