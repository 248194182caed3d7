"""Run a command of the package over gloo in place of NCCL, so that processes can share one GPU.

    torchrun --nproc-per-node 2 tests/gpu/over_gloo.py sinlstm_dist.train --train.epochs 1

gloo sends the tensors of a GPU through the CPU. For the package each process has a GPU of its own.
"""

import os
import runpy
import sys
from functools import wraps
from typing import Any

import torch
import torch.distributed
from accelerate.state import PartialState


class OwnGpu:
    """The properties of the GPU, with an identity that no other process has."""

    def __init__(self, properties: Any) -> None:
        self._properties = properties
        self.uuid = f"{properties.uuid} of local rank {os.environ.get('LOCAL_RANK')}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties, name)


def share_the_gpu() -> None:
    """Replace what would ask for NCCL, or for a GPU per process."""
    init, barrier = torch.distributed.init_process_group, torch.distributed.barrier
    prepare, properties = PartialState._prepare_backend, torch.cuda.get_device_properties

    @wraps(init)
    def init_over_gloo(backend: str, *args: Any, **kwargs: Any) -> None:
        init("gloo" if backend == "nccl" else backend, *args, **kwargs)

    def prepare_gloo(self: PartialState, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        backend, kind = prepare(self, *args, **kwargs)
        return ("gloo" if backend == "nccl" else backend), kind

    torch.distributed.init_process_group = init_over_gloo
    torch.distributed.barrier = lambda *args, **kwargs: barrier()  # without the id of a device
    torch.cuda.get_device_properties = lambda device=None: OwnGpu(properties(device))
    PartialState._prepare_backend = prepare_gloo


if __name__ == "__main__":
    share_the_gpu()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
