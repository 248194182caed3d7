"""Prove that this set of processes trains correctly, or name the problem.

    python -m sinlstm_dist.verify
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.verify --processes 2
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.verify --inject flipped-bit

It runs the package's own training path, and compares the results with plain computations on each
process.
"""

from sinlstm_dist.verify.command import main

__all__ = ["main"]
