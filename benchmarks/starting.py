"""How the benchmarks start this package: one process or several, one thread each."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run(arguments: list[str], *, processes: int) -> None:
    """`python ARGUMENTS` in each of some processes; shows its output if it fails."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=one_thread, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}\n{ended.stderr}")


def train(settings: Mapping[str, Any], *, processes: int) -> list[dict[str, Any]]:
    """Train through the ordinary command; returns one row of metrics per epoch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**settings, "output.dir": f"{folder}/run"}
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        run(["-m", "sinlstm_dist.train", *flags], processes=processes)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
