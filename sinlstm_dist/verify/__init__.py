"""Prove that this set of processes trains correctly, or say what does not.

    python -m sinlstm_dist.verify
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.verify --json verify.json
    torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m sinlstm_dist.verify --inject flipped-bit

What is checked is the package's own training path; what it is checked against are plain recounts.
"""

from sinlstm_dist.verify.command import main

__all__ = ["main"]
