"""Builds the task that a configuration describes, the built-in one or the user's."""

from accelerate.utils import set_seed

from sinlstm_dist import lstm, sine, user_code
from sinlstm_dist.arithmetic import CODE, OWN, RECURRENCE
from sinlstm_dist.blame import Refused, blamed
from sinlstm_dist.config import Config
from sinlstm_dist.errors import ConfigError
from sinlstm_dist.optimizers import FULL_LR, group_values
from sinlstm_dist.probe import check_model
from sinlstm_dist.processes.world import World
from sinlstm_dist.run.checkpoint import Tensors
from sinlstm_dist.run.layout import shapes, unlike
from sinlstm_dist.splits import check_enough_pieces
from sinlstm_dist.task import Task


def new_task(config: Config, world: World) -> tuple[Task, dict[str, str]]:
    """Build the task, the built-in one or the user's, with the same weights on every process.

    Returns:
        the task, and the code that computes it, in words.

    Raises:
        ConfigError: the user's code fails, or `model.lstm` asks for a recurrence that is not
            available here.
    """
    set_seed(config.train.seed)
    if config.task.build:
        return _user_task(config)
    try:
        recurrence = lstm.choose(
            config.model.lstm,
            device_type=world.device.type,
            input_size=1,
            hidden_size=config.model.hidden_size,
            num_layers=config.model.num_layers,
        )
    except ValueError as error:
        raise ConfigError(f'model.lstm="{config.model.lstm}": {error}') from error
    is_differentiable = recurrence.name == "fused" and world.device.type == "cpu"
    if config.train.reduction == "ddp" and recurrence.name != "torch" and not is_differentiable:
        own = "reference" if recurrence.name == "reference" else "GPU kernel"
        recurrence = lstm.Choice("torch", f"the {own} is for ordered reduction")
    code = {
        RECURRENCE: "nn.LSTM" if recurrence.name == "torch" else OWN,
        "optimizer": "SGD that rounds each operation",  # before it there was torch's
    }
    return sine.build(config, recurrence), code


def _user_task(config: Config) -> tuple[Task, dict[str, str]]:
    code = user_code.load(config.task.build)
    with blamed(config.task.build, at=code.function):
        settings = code.settings.model_validate(config.task.settings())
        task = code.function(settings, config)
        if not isinstance(task, Task):
            kind = "None" if task is None else type(task).__name__
            raise TypeError(f"{code.function.__name__} returned {kind}, not a Task")
        check_model(task.model)
        if any(FULL_LR in group for group in task.optimizer.param_groups):
            raise Refused("a scheduler of torch would never be stepped: give Task(lr_factor=...)")
        group_values(task.model, task.optimizer)  # for its errors
    return task, {CODE: code.digest[:16], "optimizer": type(task.optimizer).__name__}


def trained_task(config: Config, weights: Tensors, world: World) -> Task:
    """The task of a run, with the weights that it has trained.

    Raises:
        ConfigError: the weights are of another model; as `new_task`; or there are more processes
            than pieces.
    """
    check_enough_pieces(config, world)
    task, _ = new_task(config, world)
    model = task.model
    buffers = dict(model.named_buffers())
    if problem := unlike(weights, shapes(model.state_dict()), buffers=buffers):
        raise ConfigError(f"the weights are those of another model: {problem}")
    model.load_state_dict(weights)
    world.prepare_model(model)
    return task
