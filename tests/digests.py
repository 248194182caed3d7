"""Compute digests on each instruction set of this machine: of what the kernel's functions return,
and of the weights that each golden configuration ends with.

    python tests/digests.py digests.json

Writes the kernel's file too: the digests are of that build.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from sinlstm_dist import compiled, lstm
from sinlstm_dist.config import load_config
from sinlstm_dist.golden import GOLDEN, Golden, weights_digest
from sinlstm_dist.train import train


def results(W: int, D: int, H: int, L: int) -> Iterator[torch.Tensor]:
    """What the kernel's functions return for one problem: rows, outputs and gradients."""
    torch.manual_seed(0)
    rnn, head = torch.nn.LSTM(D, H, L, batch_first=True), torch.nn.Linear(H, 1)
    inputs, targets = torch.randn(150, W, D, requires_grad=True), torch.randn(150, 1)
    yield lstm.predictor_rows(
        windows=inputs.detach(), targets=targets, piece_sizes=[137, 13], tolerance=0.5,
        parameters=[*rnn.parameters(), *head.parameters()],
    )  # fmt: skip
    lowest = list(rnn.parameters())[:4]
    outputs, _ = lstm.lstm(inputs, *lowest)
    outputs.square().sum().backward()
    yield from (outputs, inputs.grad, *(parameter.grad for parameter in lowest))


def kernel_digest() -> str:
    sha256 = hashlib.sha256()
    for sizes in [(50, 1, 5, 1), (50, 1, 7, 2), (300, 1, 5, 1), (30, 3, 16, 3), (50, 1, 5, 3)]:
        for result in results(*sizes):
            sha256.update(result.detach().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def golden_digest(golden: Golden) -> str:
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(overrides={**golden.changed, "output.dir": f"{folder}/run"}))
        return weights_digest(load_file(f"{folder}/run/model.safetensors"))


def digests(instruction_set: str) -> dict[str, str]:
    compiled.set_instruction_set(instruction_set)
    return {
        "kernel": kernel_digest(),
        **{name: golden_digest(golden) for name, golden in GOLDEN.items()},
    }


if __name__ == "__main__":
    found = {name: digests(name) for name in compiled.instruction_sets()}
    answer = {"file": compiled.kernel().__file__, "digests": found}
    Path(sys.argv[1]).write_text(json.dumps(answer))
