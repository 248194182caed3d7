"""A record of the weights that a kind of device computes, to compare other devices with it.

torchrun --nproc-per-node 8 -m sinlstm_dist.verify --record fleet.json
torchrun --nproc-per-node 8 -m sinlstm_dist.verify --against fleet.json
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sinlstm_dist.arithmetic import UNSET, Arithmetic, changes, versions
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.golden import GOLDEN
from sinlstm_dist.problems import first_problem
from sinlstm_dist.run import files
from sinlstm_dist.run.identity import changed_keys

FORMAT = 1
NO_RECORD = "is not a file that verify --record has written"


class Record(BaseModel):
    """Digests of weights, and what they were computed with.

    Args:
        format: of the file.
        written: when, such as "2026-11-26 07:30 UTC".
        device: the kind: a GPU's name, or "cpu".
        arithmetic: what decides the last bits of a result, versions among it.
        configuration: what was verified, by section and key.
        digests: of the weights after some steps that a process takes alone, by configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    written: str
    device: str
    arithmetic: dict[str, str]
    configuration: dict[str, Any]
    digests: dict[str, str]

    @property
    def source(self) -> str:
        """When and on what it was written, for a message."""
        return f"{self.written} on {self.device}"

    def write(self, path: Path) -> None:
        """Replace the file at `path` by this record.

        Raises:
            ConfigError: it cannot be written.
        """
        content = json.dumps(self.model_dump(), indent=1) + "\n"
        try:
            files.replace_synced(path, content.encode())
        except OSError as error:  # which names the unfinished file
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    def refuse(self, other: "Record") -> str:
        """Why this record does not tell what the weights of `other` must be; "" if it does."""
        if other.device != self.device:
            return f"is of {self.device}, and here is {other.device}"
        if differing := changes(*(_versions(each.arithmetic) for each in (self, other))):
            return f"is of other versions: {', '.join(differing.values())}"
        if keys := changed_keys(self.configuration, other.configuration):
            return f"is of another configuration: {', '.join(keys)}"
        return ""


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ConfigError: there is none.
    """
    try:
        content = files.parse_json(files.read(path))
        number = content.get("format") if isinstance(content, dict) else None
        if isinstance(number, int) and number != FORMAT:
            raise ConfigError(f"{path} has format {number}, and this version reads {FORMAT}")
        recorded = Record.model_validate(content)
        _check_digests(recorded.digests)
        return recorded
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} {NO_RECORD}: {first_problem(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} {NO_RECORD}: {error}") from error


def _check_digests(digests: Mapping[str, str]) -> None:
    """Raise ValueError if one is missing or is no SHA-256."""
    if missing := GOLDEN.keys() - digests.keys():
        raise ValueError(f"digests: there is no {min(missing)}")
    for name, digest in digests.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"digests.{name}: must be 64 hexadecimal digits")


def _versions(arithmetic: Arithmetic) -> dict[str, str]:
    return {name: arithmetic.get(name, UNSET) for name in versions()}


def now() -> str:
    """The time, as a record has it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
