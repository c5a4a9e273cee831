"""The config of a run: its fields and groups, config files, and changes from the command line.

A group is a call: ``name`` of a class or function and its arguments, which have the types and defaults of its
signature. ``config.quantizer = quantizers.defaults("fsq", levels=(8, 5, 5))`` therefore gives a group that has
``--config.quantizer.bound`` and refuses ``--config.quantizer.num_codes``.
"""

import dataclasses
import functools
import importlib.util
import inspect
import re
import runpy
import traceback
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

import vqjax
from vqjax.data.sources import SOURCES, Feeding, check_image_fields
from vqjax.errors import UserError, did_you_mean
from vqjax.losses.registry import LOSSES
from vqjax.models.registry import MODELS, TRANSFORMERS
from vqjax.quantizers.registry import QUANTIZERS
from vqjax.runtime.paths import is_url, local_path
from vqjax.runtime.signature import Call, Registry, within
from vqjax.tasks.registry import TASKS
from vqjax.training.optimizer import OPTIMIZERS
from vqjax.training.schedules import SCHEDULES

Group = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The config of a run: its fields, and the groups that say what runs."""

    num_steps: int  # optimizer steps of the whole run
    seed: int = 0  # of initial values, the order of the data, augmentation and the quantizer
    batch_size: int = 128  # images per step, over all devices
    gradient_accumulation: int | None = None  # parts of a batch that the networks see in turn, to save memory
    parameter_shards: int = 1  # devices that share parameters and optimizer states, to save memory
    log_every: int = 100  # steps between lines of metrics.jsonl
    eval_every: int = 1000  # steps between evaluations on the held-out split
    checkpoint_every: int = 1000  # steps between checkpoints; one is always written at the end
    keep_checkpoints: int = 2  # newest checkpoints to keep
    keep_every: int | None = None  # steps; checkpoints at their multiples are kept besides
    keep_best: str | None = None  # metric of evaluations, such as psnr, whose best checkpoint is kept besides
    keep_best_mode: Literal["max", "min"] = "max"  # whether the best value of that metric is the largest
    patience: int | None = None  # checkpoints in a row without a better keep_best, after which the run ends
    nonfinite: Literal["stop", "skip"] = "stop"  # at a loss or gradient that is not finite; skip omits that step
    steps_per_dispatch: int | None = None  # steps per call of the compiled program; None: 1 on CPUs, 20 elsewhere
    tensorboard: bool = True  # scalars and pictures under WORKDIR/tensorboard
    wandb: bool = False  # the same to Weights & Biases

    task: Group  # the training recipe: vqjax/tasks/registry.py
    data: Group  # the images or tokens: vqjax/data/sources.py, and the fields of Feeding
    model: Group  # the networks: vqjax/models/registry.py
    quantizer: Group  # vqjax/quantizers/registry.py; a dictionary of such groups by place in a classifier, or of none
    schedules: Group = dataclasses.field(default_factory=dict)  # of the quantizer: vqjax/training/schedules.py
    loss: Group | None  # of the reconstruction: vqjax/losses/registry.py; None for models of tokens
    optimizer: Group  # vqjax/training/optimizer.py; a dictionary of such groups if several networks are trained

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
            _check_range(name, getattr(self, name), 1)
        _check_range("seed", self.seed, 0)
        _check_range("steps_per_dispatch", self.steps_per_dispatch, 1, 1000)
        _check_range("gradient_accumulation", self.gradient_accumulation, 1)
        _check_range("parameter_shards", self.parameter_shards, 1)
        _check_range("keep_every", self.keep_every, 1)
        if (self.keep_every or 0) % self.checkpoint_every:
            raise UserError(
                f"keep_every must be a multiple of checkpoint_every={self.checkpoint_every} or None, got "
                f"{self.keep_every}."
            )
        if self.keep_best is not None and self.checkpoint_every % self.eval_every:
            raise UserError(
                f"eval_every must be a divisor of checkpoint_every={self.checkpoint_every}, as keep_best needs an "
                f"evaluation at each checkpoint, got {self.eval_every}."
            )
        _check_range("patience", self.patience, 1)
        if self.patience is not None and self.keep_best is None:
            raise UserError(f"keep_best must be a metric such as psnr where patience={self.patience}, got None.")
        if self.batch_size % (self.gradient_accumulation or 1):
            raise UserError(
                f"gradient_accumulation must be a divisor of batch_size={self.batch_size} or None, "
                f"got {self.gradient_accumulation}."
            )
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError('wandb must be False without its package, got True; run pip install "vqjax[wandb]".')


def _check_range(name: str, value: int | None, low: int, high: int | None = None) -> None:
    """Refuse numbers out of range; None is off."""
    if value is not None and (value < low or (high is not None and value > high)):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} must be {allowed}, got {value}.")


class PerPart(Registry):
    """A group that is one choice of a registry, or a dictionary of such choices: by network, or by place in a network.

    Args:
      registry: What a part chooses from; what is added to it later can be chosen as well.
    """

    def __init__(self, registry: Registry) -> None:
        super().__init__({}, key=registry.key)
        self._registry = registry

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._registry[name]

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def items(self) -> ItemsView[str, Callable[..., Any]]:
        return self._registry.items()

    def call(self, name: Any) -> Call:
        return self._registry.call(name)

    def complete(self, value: Any) -> dict[str, Any]:
        if not hasattr(value, "items") or self.key in value:
            return self._registry.complete(value)
        completed = {}
        for part, group in value.items():
            with within(part):
                completed[part] = self._registry.complete(group)
        return completed

    def override(self, config: Any, path: str, text: str) -> dict[str, Any]:
        if self.key in config:
            return self._registry.override(config, path, text)
        part, _, path = path.partition(".")
        if part not in config:
            raise UserError(f"{part} is unknown; {did_you_mean(part, config)}")
        with within(part):
            if not path:
                raise UserError(f"is a group, got {text!r}; set one of its arguments, such as {self.key}.")
            return dict(config.items()) | {part: self._registry.override(config[part], path, text)}

    def __str__(self) -> str:
        return str(self._registry)


GROUPS: dict[str, Registry] = {
    "task": TASKS,
    "data": SOURCES,
    "model": MODELS,
    "quantizer": PerPart(QUANTIZERS),
    "loss": LOSSES,
    "optimizer": PerPart(OPTIMIZERS),
    "schedules": SCHEDULES,
}
"""What the groups of a config choose from."""

_CONFIG = Call(Run, GROUPS)


def base_config() -> ConfigDict:
    """Return a config that lacks ``num_steps``, for config files to start from.

    Returns:
      The fields of ``Run`` with their defaults, and the groups of a VQ-VAE on bundled photographs.

    Example:
      >>> config = base_config()
      >>> config.seed, config.quantizer.estimator
      (0, 'tangential_rotation')
    """
    return ConfigDict(
        _CONFIG.defaults(
            task="vqvae",
            data="photos",
            model="residual",
            quantizer={"name": "vq", "num_codes": 1024},
            loss="mse",
            optimizer={"name": "adam", "learning_rate": 2e-4},
        )
    )


def complete(config: Any) -> ConfigDict:
    """Check the names and types of all fields, and fill in the arguments that groups leave out.

    Args:
      config: A config, whose groups may be plain dictionaries.

    Returns:
      The config with every argument of its groups.

    Raises:
      UserError: A name is unknown, or a value is of the wrong type; the message begins with the dotted path.

    Example:
      >>> config = base_config()
      >>> config.quantizer = {"name": "fsq", "levels": (8, 5, 5)}
      >>> complete(config).quantizer.bound
      'asymmetric'
    """
    if not hasattr(config, "items"):
        raise UserError(f"the config must be a ConfigDict, got {config!r}; return one from get_config().")
    with within("config"):
        return ConfigDict(_CONFIG.defaults(**config))


def override(config: ConfigDict, assignment: str) -> ConfigDict:
    """Change one field as the command line asks.

    Args:
      config: The config.
      assignment: ``"quantizer.codebook.decay=0.9"``, or the name of a boolean field alone, which turns it on. ``None``
        disables what is optional. A different ``name`` brings the defaults of what it names; arguments of both keep the
        values that differ from the defaults before.

    Returns:
      The complete config with that change.

    Raises:
      UserError: A name is unknown, or a value is of the wrong type.

    Example:
      >>> config = override(base_config(), "optimizer.clip_norm=1")
      >>> config.optimizer.clip_norm, override(config, "optimizer.clip_norm=None").optimizer.clip_norm
      (1.0, None)
    """
    path, equals, text = assignment.partition("=")
    with within("config"):
        return ConfigDict(_CONFIG.override(config, path, text if equals else "true"))


def validate(config: Any) -> ConfigDict:
    """Refuse a config that cannot run, before anything is loaded or written.

    Args:
      config: A config, whose groups may be plain dictionaries.

    Returns:
      The complete config.

    Raises:
      UserError: A field is unknown, missing, of the wrong type or out of range; the message begins with its path.

    Example:
      >>> config = base_config()
      >>> config.num_steps, config.batch_size = 10, 0
      >>> validate(config)
      Traceback (most recent call last):
      vqjax.errors.UserError: config.batch_size must be at least 1, got 0.
    """
    config = complete(config)
    with within("config"):
        _CONFIG.check_given(config)
        # What else does not go with tokens, the task refuses.
        if config.loss is None and config.model.name not in TRANSFORMERS and config.data.source != "tokens":
            raise UserError(f"loss is missing; it must be {LOSSES}.")
        Run(**config.to_dict())
        with within("data"):
            Feeding(**{field.name: config.data[field.name] for field in dataclasses.fields(Feeding)})
            GROUPS["data"].call(config.data.source).check_given(config.data)
    check_image_fields(config.data)
    return config


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config file, and change fields as the command line asks.

    Args:
      path: A file with a function ``get_config``, or the name of one that comes with the package. What follows a colon
        are its keyword arguments, ``codes=512,sonnet`` (a boolean alone is turned on); a function of one positional
        argument gets the text as it is.
      overrides: Arguments such as ``"--config.quantizer.num_codes=512"``, in any order.

    Returns:
      The complete config.

    Raises:
      UserError: The file cannot be used, a name is unknown, or a value is of the wrong type.

    Example:
      >>> load_config("quickstart:quantizer=fsq", ["--config.seed=1"]).quantizer.levels
      (8, 6, 5)
    """
    file, argument = _split(path)
    try:
        config = _call(runpy.run_path(str(file))["get_config"], argument)
    except Exception as error:
        # Config files are the user's code: what fails there is reported with its place.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        place = f"--config={file}" + (f", line {lines[-1]}" if lines else "")
        reason = "" if isinstance(error, UserError) else f" cannot be used: {type(error).__name__}"
        raise UserError(f"{place}{reason}: {error}") from error
    return override_all(complete(config), overrides)


def override_all(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Change fields as the command line asks, in any order.

    Args:
      config: The config.
      overrides: Arguments such as ``"--config.quantizer.num_codes=512"``.

    Returns:
      The complete config with these changes.

    Raises:
      UserError: A name is unknown, or a value is of the wrong type.

    Example:
      >>> override_all(base_config(), ["--config.quantizer.levels=8,5", "--config.quantizer.name=fsq"]).quantizer.levels
      (8, 5)
    """
    # A different name brings different fields, so names come first, those of outer parts before those of inner ones.
    for assignment in sorted((text.removeprefix("--config.") for text in overrides), key=_order):
        config = override(config, assignment)
    return config


def task_with_absolute_paths(task: ConfigDict) -> ConfigDict:
    """Return the group ``task`` with absolute paths of the files and runs that it names, where they are.

    Args:
      task: The task and its arguments, some of which are groups with a ``file`` or a ``workdir``.

    Example:
      >>> task = ConfigDict({"name": "autoregressive", "tokenizer": {"name": "run", "workdir": "."}})
      >>> Path(task_with_absolute_paths(task).tokenizer.workdir).is_absolute()
      True
    """
    task = ConfigDict(task.to_dict())
    for group in (part for part in task.values() if isinstance(part, ConfigDict)):
        for name in {"file", "workdir"}.intersection(group):
            path = group[name]
            if path and not is_url(path) and local_path(path).exists():
                group[name] = str(local_path(path).absolute())
    return task


def check_only_data(overrides: Sequence[str], use: str, *others: str) -> None:
    """Refuse changes of a trained run's config other than of its data.

    Args:
      overrides: Arguments such as ``"--config.data.name=DIR"``.
      use: What the run is loaded for, in the message.
      *others: Further groups that may change, such as ``"task.tokenizer"``.

    Raises:
      UserError: An argument is of another group.

    Example:
      >>> check_only_data(["--config.seed=3"], "an evaluation")
      Traceback (most recent call last):
      vqjax.errors.UserError: --config.seed is unknown to an evaluation, which takes --config.data.FIELD; train ...
    """
    groups = tuple(f"--config.{group}." for group in ("data", *others))
    for flag in (override.partition("=")[0] for override in overrides):
        if not flag.startswith(groups):
            taken = " and ".join(f"{group}FIELD" for group in groups)
            raise UserError(f"{flag} is unknown to {use}, which takes {taken}; train again with it.")


def _split(path: str) -> tuple[Path, str]:
    """A config file and the text of its arguments; the colon between them is the first behind an existing file."""
    for place in [match.start() for match in re.finditer(":|$", path)]:
        if place and (file := local_path(path[:place], "--config")).is_file():
            return file, path[place + 1 :]
    name, _, arguments = path.partition(":")
    if name not in recipes():
        raise UserError(
            f"--config must be a config file or one of the package, with arguments after a colon, got {path!r}; "
            f"{did_you_mean(name, recipes())}"
        )
    return recipes()[name], arguments


@functools.cache
def recipes() -> dict[str, Path]:
    """Return the config files that come with the package by their names, such as ``"quickstart"``."""
    package = Path(vqjax.__file__).parent
    # They lie in an installed package, and beside that of a clone.
    places = [
        place for place in (package / "configs", package.parent / "configs") if (place / "quickstart.py").exists()
    ]
    return {file.stem: file for place in places[:1] for file in sorted(place.glob("*.py"))}


def _call(get_config: Callable[..., Any], text: str) -> Any:
    """Call the function of a config file with the arguments in a text."""
    parameters = inspect.signature(get_config).parameters.values()
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
        return get_config(text) if text else get_config()
    group = Call(get_config)
    arguments = group.defaults()
    for assignment in filter(None, text.split(",")):
        name, equals, value = assignment.partition("=")
        try:
            arguments = group.override(arguments, name, value if equals else "true")
        except UserError as error:
            raise UserError(f"config argument {error}") from error
    return get_config(**arguments)


def _order(assignment: str) -> tuple[bool, int]:
    names = assignment.partition("=")[0].split(".")
    is_choice = names[0] in GROUPS and names[-1] == GROUPS[names[0]].key
    return not is_choice, len(names) if is_choice else 0
