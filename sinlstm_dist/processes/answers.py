"""What the processes tell each other through the store, and whose failure an error is."""

from pydantic import BaseModel
from torch.distributed import DistError

from sinlstm_dist.errors import said
from sinlstm_dist.processes.rendezvous import clean


class Decision(BaseModel, extra="forbid", strict=True):
    """A decision for all processes, made by the first one that knew enough."""

    hosts: list[str] = []  # by rank, if all have come
    processes: list[str] = []  # by rank, ids for `alive`
    gpus: list[str] = []  # by rank, UUIDs; "" for a process that computes on the CPU
    missing: list[int] = []  # ranks that did not come in time
    stop: str = ""  # why all stop before they begin, if one was asked to

    def sizes(self) -> set[int]:
        """For how many processes this is; one number if it is sound."""
        return {len(self.hosts), len(self.processes), len(self.gpus)}

    def shared_gpu(self) -> str:
        """Say which processes were given the same GPU, and what to do; "" if none were."""
        first: dict[str, int] = {}
        for rank, gpu in enumerate(self.gpus):
            if first.setdefault(gpu, rank) == rank or not gpu:
                continue
            return (
                f"rank {first[gpu]} and rank {rank} on {self.hosts[rank]} have the same GPU, "
                f"{gpu}, and NCCL needs one per process: start at most as many processes per "
                "machine as it has GPUs, and check CUDA_VISIBLE_DEVICES and "
                "ACCELERATE_TORCH_DEVICE; or set ACCELERATE_USE_CPU=true to train on CPUs"
            )
        return ""


class Roll(BaseModel, extra="forbid"):
    """The answers by rank: what failed in that process, or "" if it only lost the others."""

    answers: dict[int, str]


def is_lost(error: Exception) -> bool:
    """Whether `error` comes from torch's process group, because another process failed."""
    words = ("gloo", "NCCL")
    is_torchs = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return is_torchs or isinstance(error, DistError)


def own_failure(error: Exception) -> str:
    """What failed in this process; "" if it only lost the others."""
    return "" if is_lost(error) else clean(said(error))
