"""The state.json of a checkpoint, checked before it is used.

A file without a format number has format 1; it lacks the fields that have defaults below.
Formats 1 and 2 are of the built-in task only, and call the sum of its loss `squared_error`. Up to
format 3 the built-in task's data had other last bits, so `data` is not compared with today's.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from sinlstm_dist.config import Config, unknown_keys
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.problems import first_problem
from sinlstm_dist.run import files

STATE = "state.json"
FORMAT = 4
LARGEST = 2**53  # up to here every reader of JSON reads counts exactly
OLDER_TOTALS = {"squared_error", "correct", "samples"}  # in formats 1 and 2


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Totals(_Part):
    """Sums over the samples of the running epoch so far."""

    loss_sum: float
    correct: int | float | None = Field(ge=0)
    samples: int = Field(ge=0, le=LARGEST)
    divisor: float | None

    @model_validator(mode="after")
    def _agrees(self) -> "_Totals":
        if self.divisor is None and (self.correct or 0) > self.samples:
            raise ValueError("more samples are correct than there are")
        if not self.samples and (self.loss_sum or self.correct or self.divisor):
            raise ValueError("there are totals without samples")
        return self


class _Group(_Part):
    """An optimizer's group of parameters: their names, and its settings."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    params: list[str]


class _State(_Part):
    """The fields of state.json, and how they must agree."""

    step: int = Field(ge=0, le=LARGEST)
    epoch: int = Field(ge=0, le=LARGEST)
    step_in_epoch: int = Field(ge=0, le=LARGEST)
    totals: _Totals
    optimizer: list[_Group] = []
    config: Config
    data: str = Field(pattern=r"^[0-9a-f]{64}$")
    tracker_id: str = Field(pattern=r"^([0-9a-f]{32})?$")
    arithmetic: dict[str, str] = {}

    @model_validator(mode="after")
    def _agrees(self) -> "_State":
        if bool(self.totals.samples) != bool(self.step_in_epoch):
            raise ValueError("totals do not agree with the steps in the epoch")
        if self.epoch + bool(self.step_in_epoch) > self.config.train.epochs:
            raise ValueError("more epochs have begun than the configuration has")
        return self


class NewerVersion(ConfigError):
    """A newer version of this program wrote the file; it is not damaged."""


def refuse_newer(number: int) -> None:
    """Refuse a format that this version does not know.

    Raises:
        NewerVersion: the format is newer.
    """
    if number > FORMAT:
        raise NewerVersion(
            f"is of format {number}, written by a newer version; this version knows up to {FORMAT}"
        )


def parse(content: bytes) -> dict[str, Any]:
    """The state in a state.json of this or an older format.

    Settings that an older format lacks have their defaults. `data` is "" where an older version
    computed the same data with other last bits.

    Raises:
        NewerVersion: its format, or a key of its configuration, is of a newer version.
        ValueError: no version writes this.
    """
    fields = files.parse_json(content)
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    number = fields.pop("format", 1)
    if type(number) is not int or number < 1:
        raise ValueError(f"format: {number!r:.40} is not a format number")
    refuse_newer(number)
    if isinstance(fields.get("config"), dict) and (unknown := unknown_keys(fields["config"])):
        raise NewerVersion(f"has settings of a newer version: {', '.join(unknown)}")
    if number < 3:
        fields = _from_older(fields, number)
    try:
        state = _State.model_validate(fields).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    if number < 4 and not state["config"]["task"]["build"]:
        state["data"] = ""
    return state


def _from_older(fields: dict[str, Any], number: int) -> dict[str, Any]:
    """The fields of a state.json of format 1 or 2, as this version writes them."""
    for name in ("optimizer", "arithmetic") if number == 1 else ("optimizer",):
        if name in fields:
            raise ValueError(f"{name}: format {number} does not have it")
    totals = fields.get("totals")
    if not isinstance(totals, dict) or set(totals) != OLDER_TOTALS:
        raise ValueError(f"totals: needs {', '.join(sorted(OLDER_TOTALS))}")
    new = {"loss_sum": totals["squared_error"], "divisor": None}
    return {**fields, "totals": {"correct": totals["correct"], "samples": totals["samples"], **new}}
