"""Run a command of the package on processes that share one GPU, over NCCL or gloo.

    torchrun --nproc-per-node 2 tests/gpu/on_one_gpu.py nccl sinlstm_dist.train --train.epochs 1

For the package each process has a GPU of its own. For NCCL each is on a machine of its own, so that
they talk through sockets, as machines without InfiniBand do. gloo sends the tensors through the
CPU. Rank 1 sees GPU 0 alone, as where a launcher hides all others.
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
    """Make the package and NCCL believe that this process has a GPU of its own."""
    properties = torch.cuda.get_device_properties
    torch.cuda.get_device_properties = lambda device=None: OwnGpu(properties(device))
    # https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-hostid
    os.environ["NCCL_HOSTID"] = f"machine of rank {os.environ.get('RANK')}"
    os.environ["NCCL_SOCKET_IFNAME"] = "lo"


def replace_nccl() -> None:
    """Use gloo wherever the package and Accelerate ask for NCCL."""
    init, barrier = torch.distributed.init_process_group, torch.distributed.barrier
    prepare = PartialState._prepare_backend

    @wraps(init)
    def init_over_gloo(backend: str, *args: Any, **kwargs: Any) -> None:
        init("gloo" if backend == "nccl" else backend, *args, **kwargs)

    def prepare_gloo(self: PartialState, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        backend, kind = prepare(self, *args, **kwargs)
        return ("gloo" if backend == "nccl" else backend), kind

    torch.distributed.init_process_group = init_over_gloo
    torch.distributed.barrier = lambda *args, **kwargs: barrier()  # without the id of a device
    PartialState._prepare_backend = prepare_gloo


if __name__ == "__main__":
    _, backend, module, *arguments = sys.argv
    share_the_gpu()
    if backend == "gloo":
        replace_nccl()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
