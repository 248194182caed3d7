"""Weights that are known: what the built-in task ends with on any CPU or, of one layer, NVIDIA GPU.

These are digests of the tensors of six short runs, with which `verify` compares. The `weights`
line of a run is the SHA-256 of its file, which has a header too. A digest changes only if this
package computes something else on purpose.

    python -m pytest tests/test_golden.py
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Golden:
    """A configuration, and what its run ends with.

    Args:
        changed: the values that differ from the defaults.
        digest: the `weights_digest` of the final weights.
    """

    changed: Mapping[str, object]
    digest: str


_SMALL = {"data.train_size": 1000, "data.test_size": 100, "train.epochs": 3}
GOLDEN = {
    "default": Golden(
        {"train.epochs": 3},
        "274cde648e13ed6c2bbbcfed15bdaaacd5c488cf6a7051388b252f6bd95fa0f1",
    ),
    "noisy": Golden(
        {**_SMALL, "data.noise": 0.02},
        "d11edde3b5571b39e51a82ba8db7b6de6b3f912dd63d17b72509c1ba1977ec17",
    ),
    "momentum": Golden(
        {**_SMALL, "data.noise": 0.02, "optim.momentum": 0.9},
        "886829f2a12480eaeda0c2dc90e8383e52eb081566dc75ad3e7c0d4804ee570a",
    ),
    "replacement": Golden(
        {**_SMALL, "train.sampling": "replacement"},
        "31b6d8c30a45594fe819a44d165cecd1efd920b48531069542fb05b9efa5a25d",
    ),
    "other sizes": Golden(
        {**_SMALL, "data.window": 33, "data.period": 25.3, "model.hidden_size": 13,
         "train.global_batch_size": 130, "train.virtual_shards": 11, "train.seed": 7},
        "a58504205120a55f9aceb8426f0c5a012bd0bf12fc8e86225007e17c395668f0",
    ),
    "two layers": Golden(
        {**_SMALL, "model.num_layers": 2},
        "b6578641f541baf74ae9be4db8c270252b5562b8e30b9650aa7cecdd7cd4796b",
    ),
}  # fmt: skip
KNOWN = {name: golden.digest for name, golden in GOLDEN.items()}


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, in the order of their names.

    Unlike that of a file it does not depend on how the file is written.

    Returns:
        64 hexadecimal digits.
    """
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(weights[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
