"""The sections of the configuration: their keys, defaults and limits."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """One table of the TOML file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_text(value: str) -> str:
    """Refuse what neither TOML nor a file name can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8
        raise PydanticCustomError("text", "Input should be UTF-8") from error
    if "\0" in value:
        raise PydanticCustomError("text", "Input should have no NUL character")
    return value


Text = Annotated[str, AfterValidator(_check_text)]

SINE = "sine"  # data.source's value for the series that needs no file


class Data(Section):
    """The series and its windows."""

    train_size: int = Field(10_000, ge=1, le=10**9, description="training windows")
    test_size: int = Field(1_000, ge=1, le=10**9, description="test windows")
    window: int = Field(50, ge=1, le=10_000, description="input time steps per window")
    period: float = Field(60.0, gt=0, description="time steps in one cycle")
    noise: float = Field(
        0.0, ge=0, description="standard deviation of the noise on inputs; targets stay clean"
    )
    source: Text = Field(
        SINE,
        description='"sine" or a file with a series: .csv, .tsv or .txt, also packed (.gz, .bz2, '
        ".xz); .npy; .parquet",
    )
    column: Text = Field(
        "", description='which column of that file; "" = the only one that can be meant'
    )
    time: Text = Field(
        "", description='its column of times; "" = the one that has them, "none" = no times'
    )
    gaps: Literal["refuse", "allow"] = Field(
        "refuse", description="a file with missing times or uneven steps is refused, or read"
    )
    encoding: Text = Field("utf-8", description="of that file, if it is text")
    difference: int = Field(
        0, ge=0, le=10_000, description="0 = learn the values, n = their differences at lag n"
    )
    test_phase: float = Field(
        0.5, description="time steps by which test windows are shifted; 0.0 = the article's split"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the noise")

    @property
    def context(self) -> int:
        """Values that a prediction reads: the window, and with a difference of n the n before."""
        return self.difference + self.window

    @property
    def season(self) -> int:
        """The period in whole steps."""
        return max(1, round(self.period))


class Model(Section):
    """The model: its size and the implementation of the LSTM."""

    hidden_size: int = Field(5, ge=1, le=4096, description="features of the hidden state")
    num_layers: int = Field(1, ge=1, le=16, description="stacked LSTM layers")
    lstm: Literal["auto", "fused", "reference", "torch"] = Field(
        "auto", description="implementation of the recurrence"
    )


class Optim(Section):
    """Stochastic gradient descent."""

    lr: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum")


class Train(Section):
    """The training run."""

    epochs: int = Field(100, ge=1, description="passes over the training windows")
    global_batch_size: int = Field(
        100, ge=1, le=2**24, description="samples in one optimizer step over all processes"
    )
    tolerance: float = Field(
        0.1, gt=0, description="|prediction - target| below this counts as correct"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of weights and sample order")
    sampling: Literal["permutation", "replacement"] = Field(
        "permutation", description="how an epoch draws its samples"
    )
    reduction: Literal["ordered", "ddp"] = Field(
        "ordered", description="same bits on any number of processes, or Accelerate's wrapper"
    )
    virtual_shards: int = Field(
        8, ge=1, le=1024, description="pieces of each global batch in ordered reduction"
    )
    init_from: Text = Field("", description="a .safetensors file with starting weights")
    target_accuracy: float = Field(
        0.0, ge=0, le=1, description="a run whose test accuracy ends below it has failed"
    )
    timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="longest wait for other processes, in seconds"
    )
    num_workers: int = Field(
        0, ge=0, le=64, description="DataLoader workers; the samples do not depend on it"
    )


class Checkpoint(Section):
    """When the training state is saved, and what a start continues from."""

    every_epochs: int = Field(10, ge=0, description="epochs between checkpoints; 0 = the last only")
    every_steps: int = Field(0, ge=0, description="steps between checkpoints; 0 = by epochs only")
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept")
    resume: Text = Field("auto", description='"auto", "never" or a checkpoint folder')


def _check_setting(value: Any) -> Any:
    """Refuse what TOML cannot hold in one line, or JSON not at all."""
    if isinstance(value, list):
        return [_check_setting(item) for item in value]
    if isinstance(value, str):
        return _check_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "Input should be a finite number")
    if not isinstance(value, bool | int | float):
        raise PydanticCustomError(
            "setting", "Input should be true or false, a number, a string or a list of them"
        )
    return value


class Task(Section):
    """Your own model."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_check_setting)]] = Field(
        init=False
    )

    build: Text = Field(
        "",
        description='"" = the sine; FILE.py:FUNCTION or package.module:FUNCTION = your own',
    )

    def settings(self) -> dict[str, Any]:
        """The values of the user's own keys."""
        return dict(self.__pydantic_extra__)


class Output(Section):
    """Where results go."""

    dir: Text = Field("", description='run folder; "" = runs/<name of the config file, or default>')
    plots: bool = Field(False, description="write pictures at the end of a run")
    trackers: list[Text] = Field([], description='Accelerate trackers, such as "tensorboard"')


class Config(Section):
    """The whole configuration of a run, one attribute per TOML table; its values never change."""

    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    task: Task = Task()
    output: Output = Output()


SECTIONS: dict[str, type[Section]] = {name: type(section) for name, section in Config()}
KEYS = [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]
