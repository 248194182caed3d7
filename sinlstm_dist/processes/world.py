"""All processes of a run, and what they exchange.

All communication goes through a `World`: Accelerate's `Accelerator`, and the few collectives that
a run needs.
"""

import contextlib
import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# Imported before joining, since its functions have the group of all processes as a default value:
# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/distributed/nn/functional.py#L32
# DDP imports it after joining, and then the group's threads and connections live until the end.
# Test: test_runs_one_after_the_other_in_the_same_processes[ddp-2]
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, send_to_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sinlstm_dist.errors import ConfigError, Disagreement, RunError
from sinlstm_dist.processes import launcher
from sinlstm_dist.processes.difference import Difference, first_difference
from sinlstm_dist.processes.gathering import LARGE, SharedMemory, gather_by_messages


class World:
    """All processes of a run, seen from one of them.

    Methods marked `Collective:` must be called by every process. They have ended when they return.

    Args:
        accelerator: Accelerate's, joined.
        hosts: by rank.
        wait_for_device: returns when a GPU has done its work; raises if that waits for lost ones.
        limited: a context for calls that themselves wait for other processes; it raises likewise.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        hosts: Sequence[str],
        wait_for_device: Callable[[], None] = lambda: None,
        limited: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.accelerator = accelerator
        self.wait_for_device, self.limited = wait_for_device, limited
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device
        self.hosts, self.num_threads = hosts, launcher.num_threads()
        self.shared: SharedMemory | None = None  # `join_world` sets it, on CPUs
        self._wrappers: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

    def prepare_model(self, model: nn.Module) -> None:
        """Let Accelerate move a model to this process's device."""
        # Without device_placement=True, Accelerate imports DTensor to decide on it: 0.6 s
        self.accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)

    def wrap_model(self, model: nn.Module, *, find_unused: bool) -> nn.Module:
        """Wrap a model in Accelerate's data-parallel wrapper.

        Args:
            model: on this process's device.
            find_unused: whether the loss may not depend on some parameter.

        Collective: yes.
        """
        handler = DistributedDataParallelKwargs(find_unused_parameters=find_unused)
        self.accelerator.ddp_handler = handler
        vars(model).pop("_is_accelerate_prepared", None)  # or Accelerate would not wrap it
        with self.limited():
            wrapper: nn.Module = self.accelerator.prepare_model(model, device_placement=True)
        if isinstance(wrapper, DistributedDataParallel):
            self._wrappers.add(wrapper)
        return wrapper

    def release_wrappers(self) -> None:
        """Drop the DDP wrappers' references to the process group, so that its connections close.

        Otherwise a wrapper that outlives this world would let other processes wait for this one.
        DDP has no `close`, and a group lives as long as a reference to it:
        https://github.com/pytorch/pytorch/issues/107298
        Test: test_all_learn_of_it_at_once[ddp]
        """
        for wrapper in self._wrappers:
            for part in ("reducer", "logger", "process_group"):
                vars(wrapper).pop(part, None)

    def to_device(self, batch: Any) -> Any:
        """A batch, its tensors moved to this process's device."""
        return send_to_device(batch, self.device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather all processes' rows, in order of rank.

        Args:
            rows: (N, ...), of the same shape on every process.

        Returns:
            (world_size * N, ...).

        Collective: yes, except in a world of one.
        """
        if self.size == 1:
            return rows
        if rows.is_cpu and rows.nbytes >= LARGE:
            return gather_by_messages(rows, rank=self.rank, size=self.size)
        if rows.is_cpu and self.shared:
            return self.shared.gather(rows)
        return self._ended(self.accelerator.gather, rows)

    def exchange(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Give every process its part of all processes' rows.

        Args:
            rows: (counts[rank], world_size, W); `rows[:, r]` is for process r.
            counts: the number of rows of each process.

        Returns:
            (sum(counts), W): this process's part of all rows, in order of rank.

        Collective: yes, except in a world of one.
        """
        if self.size == 1:
            return rows[:, 0]
        to_each = rows.transpose(0, 1).flatten(0, 1)  # (world_size * counts[rank], W)
        parts = rows.new_empty(sum(counts), rows.shape[-1])
        exchange, sizes = torch.distributed.all_to_all_single, [len(rows)] * self.size
        self._ended(exchange, parts, to_each, list(counts), sizes)  # Accelerate has none
        return parts

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add all processes' values element by element, in an order that the backend chooses.

        Collective: yes.
        """
        return self._ended(self.accelerator.reduce, values, reduction="sum")

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Overwrite `values` on every process with those of the main process.

        Collective: yes, except in a world of one.
        """
        if self.size == 1:
            return values
        if values.is_cpu and self.shared and values.nbytes < LARGE:
            # 45 us; gloo's broadcast takes 160 (two processes, 2026-11).
            return values.copy_(self.shared.gather(values[None])[0])
        return self._ended(broadcast, values)

    def wait_for_everyone(self) -> None:
        """Wait until every process has come here. Collective: yes."""
        # Accelerate's takes the GPU of number LOCAL_RANK, which may be one that is hidden.
        self.sum(torch.zeros(1, device=self.device))

    def _ended(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What a collective's call returns, once it has ended: NCCL's returns before."""
        with self.limited():
            result = call(*arguments, **keywords)
        self.wait_for_device()
        return result

    def gather_json(self, value: Any) -> list[Any]:
        """Gather one value from each process, in order of rank.

        Args:
            value: anything that JSON can express.

        Collective: yes, two.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(text)], device=self.device)).tolist()
        padded = torch.zeros(1, max(lengths), dtype=torch.uint8, device=self.device)
        padded[0, : len(text)] = text
        rows = self.gather(padded).cpu().numpy()
        return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]

    def on_main(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call `function` on the main process only; every process gets its result.

        If it raises, every process raises the same error, so nobody is left waiting.

        Returns:
            the function's result, which must be something that JSON can express.

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
            function: returns tensors by name, of any shape and dtype.

        Returns:
            the tensors by name, on the CPU.

        Raises:
            ConfigError: the function's.
            RunError: in place of the function's OSError.

        Collective: yes.
        """
        own: dict[str, torch.Tensor] = {}

        def call() -> dict[str, tuple[str, list[int]]]:
            own.update(function(*arguments, **keywords))
            return {
                name: (str(value.dtype).removeprefix("torch."), list(value.shape))
                for name, value in own.items()
            }

        received = {}
        for name, (dtype_name, shape) in self.on_main(call).items():
            dtype = getattr(torch, dtype_name)
            value = own[name] if self.is_main else torch.empty(shape, dtype=dtype)
            data = value.contiguous().reshape(-1).view(torch.uint8)  # backends send every dtype so
            data = self.broadcast(data.to(self.device, copy=True)).cpu()
            received[name] = data.view(dtype).reshape(shape)
        return received

    def check_same(self, **facts: str) -> None:
        """Refuse a world whose processes do not all have the same facts.

        Args:
            facts: this process's, by name.

        Raises:
            Disagreement: names the first fact that differs, and the ranks that differ.

        Collective: yes, one.
        """
        if odd := self.difference(facts):
            raise Disagreement(
                f"{odd.fact} differs from rank {odd.reference}'s on {self.names(odd.ranks)}: "
                "make it the same"
            )

    def difference(self, facts: Mapping[str, str]) -> Difference | None:
        """Find the first fact that is not the same on all processes, if there is one.

        Args:
            facts: this process's, by name.

        Collective: yes, one.
        """
        digests = [hashlib.sha256(fact.encode()).digest() for fact in facts.values()]
        mine = torch.tensor([list(row) for row in digests], dtype=torch.uint8, device=self.device)
        everyones = self.gather(mine[None]).cpu().numpy()  # (world_size, facts, 32)
        return first_difference(list(facts), [list(map(bytes, rows)) for rows in everyones])

    def names(self, ranks: Sequence[int]) -> str:
        """Describe processes so that a person finds them: `rank 1 on node2, 3 on node4`."""
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
