"""Whatever a run's own records were made into: every command ends with its work or one error."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from alterations import DEEP, VALUES, some_bytes
from launching import SMALL, flags, weights_digest
from nursery import Nursery

SETTINGS = {**SMALL, "output.dir": "run"}
SEED = 20_261_125
RECORDS = ("metrics.jsonl", "summary.json", "starts.jsonl", "config.toml")
WHOLE = (
    b"",
    b"null\n",
    b"[]\n",
    b"7\n",
    b"[" * 200_000 + b"\n",
    b"9" * 10_000 + b"\n",
    b"\0\0\0\n",
)
TOML = ("-1", "0", "nan", "inf", "1e400", '"x"', "true", "[]", "[[1]]", "{}", "9" * 30, "9" * 5000,
        "1979-05-27", '"\\u001b[31m"', "[" * 5000)  # fmt: skip


def alter(path: Path, draw: random.Random) -> str:
    """Alter one record; returns what was done."""
    content = path.read_bytes()
    if draw.random() < 0.3:
        some = [some_bytes(content, draw) for _ in range(4)]
        what, altered = draw.choice([*some, *((str(whole[:9]), whole) for whole in WHOLE)])
        path.write_bytes(altered)
        return f"{path.name}: {what}"
    lines = content.decode().splitlines()
    if path.suffix == ".toml":
        at = draw.choice([at for at, line in enumerate(lines) if "=" in line])
        lines[at] = draw.choice(["more = 1", f"{lines[at].split('=')[0]}= {draw.choice(TOML)}"])
        path.write_text("\n".join(lines) + "\n")
        return f"{path.name}: {lines[at][:60]}"
    documents = [content.decode()] if path.suffix == ".json" else lines
    at = draw.randrange(len(documents))
    record: dict[str, Any] = json.loads(documents[at])
    inner = draw.choice([record, *(value for value in record.values() if isinstance(value, dict))])
    key, value = draw.choice(sorted(inner)), draw.choice(VALUES)
    if draw.random() < 0.3:
        del inner[key]
    else:
        inner[draw.choice([key, key, key, f"{key}_more"])] = value
    documents[at] = json.dumps(record).replace(DEEP, "[" * 100_000 + "]" * 100_000)
    path.write_text("\n".join(documents) + "\n")
    return f"{path.name}: {key} -> {value!r:.40}"


def test_random_alterations(
    nursery: Nursery, trained_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    number = request.config.getoption("--alterations")
    digest = weights_digest(trained_run)
    wrong = []
    for seed in range(SEED, SEED + number):
        draw = random.Random(seed)
        root = tmp_path / str(seed)
        shutil.copytree(trained_run, root / "run")
        what = alter(root / "run" / draw.choice(RECORDS), draw)
        command = draw.choice(["train", "train", "evaluate", "compare", "plot"])
        arguments = flags(SETTINGS) if command == "train" else ["run"]
        launch = nursery.run(arguments, cwd=root, module=command)
        [code] = launch.codes
        errors = [line for line in launch.stderr.splitlines() if line.startswith("error: ")]
        is_told = len(errors) == (code != 0)
        if code not in (0, 2) or not is_told or "Traceback" in launch.stderr:
            wrong.append(f"seed {seed}, {command}, {what}: {code} {launch.stderr[-600:]}")
        elif command == "train" and code == 0:
            assert weights_digest(root / "run") == digest, what
        shutil.rmtree(root)
    assert not wrong, "\n\n".join(wrong)
