"""Whether a config can run."""

import importlib.util
import math
from typing import Any

from ml_collections import ConfigDict

from vqjax.data.sources import SOURCES
from vqjax.errors import UserError
from vqjax.models.registry import ENCODERS
from vqjax.quantizers.registry import FAMILIES, REGULARIZERS, TRANSFORMS
from vqjax.tasks.encoder_gradient import ENCODER_GRADIENTS
from vqjax.training.config import KINDS, default_config, field_names, field_type, nearest_name
from vqjax.training.nonfinite import NONFINITE_CHOICES

LARGEST_CODEBOOK = 2**24
LARGEST_DIM = 2**13


def validate(config: Any) -> None:
    """Refuses a config that cannot run, before anything is loaded or written.

    Args:
      config: A config with the fields of :func:`default_config`.

    Raises:
      UserError: The first field that is out of range, by name, with its value and what is allowed.

    Example:
      >>> config = default_config()
      >>> config.data.source, config.num_steps, config.batch_size = "photos", 10, 0
      >>> validate(config)
      Traceback (most recent call last):
      vqjax.errors.UserError: config.batch_size=0 is not allowed: use a whole number of at least 1.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"The config is {config!r}: get_config() in a config file has to return a ConfigDict.")
    _check_fields(config)
    for name in ("num_steps", "batch_size", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
        _check_range(config, name, 1, 2**31 - 1)
    _check_range(config, "seed", 0, 2**31 - 1)
    _check_range(config, "steps_per_dispatch", 0, 1000)
    _check_range(config, "gradient_accumulation", 1, config.batch_size)
    if config.batch_size % config.gradient_accumulation:
        _refuse(config, "gradient_accumulation", f"use a divisor of config.batch_size={config.batch_size}.")
    _check_choice(config, "nonfinite", NONFINITE_CHOICES)
    _check_choice(config, "data.source", SOURCES)
    _check_range(config, "data.image_size", 1, 4096)
    _check_range(config, "data.resident_limit_mb", 0, 2**31 - 1)
    if config.data.crop_padding is not None:
        _check_range(config, "data.crop_padding", 1, config.data.image_size - 1)
    _check_number(config, "data.eval_fraction", 0.0, 1.0, open_ends=True)
    _check_choice(config, "model.name", ENCODERS)
    _check_choice(config, "model.dtype", ("float32", "bfloat16"))
    _check_choice(config, "model.precision", ("default", "tensorfloat32", "float32"))
    _check_range(config, "model.width", 1, LARGEST_DIM)
    _check_range(config, "model.num_residual_blocks", 0, 100)
    _check_range(config, "model.num_scalings", 1, 8)
    if config.model.code_dim is not None:
        _check_range(config, "model.code_dim", 1, LARGEST_DIM)
    _check_quantizer(config)
    _check_number(config, "optimizer.learning_rate", 0.0, 1.0, open_ends=True)
    if config.wandb and importlib.util.find_spec("wandb") is None:
        _refuse(config, "wandb", 'the package is not installed. Run pip install "vqjax[wandb]", or leave it False.')
    _check_choice(config, "optimizer.schedule", ("constant", "cosine"))
    _check_range(config, "optimizer.warmup_steps", 0, config.num_steps)
    _check_number(config, "optimizer.clip_norm", 0.0, float("inf"))
    _check_sizes_fit(config)


def _check_quantizer(config: ConfigDict) -> None:
    _check_choice(config, "quantizer.name", FAMILIES)
    _check_fields_are_read(config)
    _check_range(config, "quantizer.num_codes", 2, LARGEST_CODEBOOK)
    for name, highest in (("code_dim", LARGEST_DIM), ("replace_unused_after", 2**31 - 1)):
        if config.quantizer[name] is not None:
            _check_range(config, f"quantizer.{name}", 1, highest)
    _check_choice(config, "quantizer.codebook_transform", ("", *TRANSFORMS))
    for name in REGULARIZERS:
        if config.quantizer[name] is not None:
            _check_number(config, f"quantizer.{name}", 0.0, float("inf"))
    _check_choice(config, "loss.encoder_gradient", ("estimator", *ENCODER_GRADIENTS))
    _check_range(config, "alternating.num_steps", 0, 1000)
    _check_number(config, "alternating.learning_rate", 0.0, float("inf"), open_ends=True)
    _check_number(config, "alternating.momentum", 0.0, 1.0)
    if config.alternating.num_steps and config.quantizer.name not in ("vector", "product_vq"):
        _refuse(config, "alternating.num_steps", "only the quantizers 'vector' and 'product_vq' have such steps.")
    if config.alternating.num_steps and config.quantizer.codebook_weight != 0:
        _refuse(
            config,
            "alternating.num_steps",
            "the codes would move twice. Set config.quantizer.codebook_weight=0.0, which "
            "config.quantizer.codebook_update='gradient' allows.",
        )


def _check_fields(config: ConfigDict) -> None:
    """A config file that sets a field the trainer never reads would be silently ignored."""
    known, given = set(field_names(default_config())), set(field_names(config))
    for name in sorted(given - known):
        raise UserError(f"config.{name} is unknown{nearest_name(name, known)}")
    for name in sorted(known - given):
        raise UserError(f"config.{name} is missing: start from vqjax.training.config.default_config().")
    _check_kinds(config)


def _check_kinds(config: ConfigDict) -> None:
    defaults = default_config()
    for name in field_names(defaults):
        kind, value = field_type(defaults, name), _value(config, name)
        if not (_is_of_kind(value, kind) or (value is None and _value(defaults, name) is None)):
            _refuse(config, name, f"use {KINDS[kind]}.")


def _is_of_kind(value: object, kind: type) -> bool:
    """Every truth value is a whole number in Python, and a whole number is not a float."""
    if kind is tuple:
        return isinstance(value, tuple | list) and bool(value) and all(_is_of_kind(item, int) for item in value)
    if kind is float:
        return _is_of_kind(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_fields_are_read(config: ConfigDict) -> None:
    """So is a field of another quantizer."""
    family, defaults = FAMILIES[config.quantizer.name], default_config().quantizer
    for name, value in config.quantizer.items():
        if name != "name" and name not in family.fields and value != defaults[name]:
            _refuse(
                config,
                f"quantizer.{name}",
                f"config.quantizer.name={config.quantizer.name!r} does not read it, only "
                f"{', '.join(sorted(family.fields))}.",
            )


def _value(config: ConfigDict, name: str) -> object:
    for part in name.split("."):
        config = config[part]
    return config


def _refuse(config: ConfigDict, name: str, allowed: str) -> None:
    raise UserError(f"config.{name}={_value(config, name)!r} is not allowed: {allowed}")


def _check_range(config: ConfigDict, name: str, low: int, high: int) -> None:
    value = _value(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        bound = f"of at least {low}" if high >= 2**31 - 1 else f"in [{low}, {high}]"
        _refuse(config, name, f"use a whole number {bound}.")


def _check_number(config: ConfigDict, name: str, low: float, high: float, open_ends: bool = False) -> None:
    value = _value(config, name)
    inside = isinstance(value, int | float) and (low < value < high if open_ends else low <= value < high)
    if not inside:
        _refuse(config, name, f"use a number {'above' if open_ends else 'of at least'} {low} and below {high}.")


def _check_choice(config: ConfigDict, name: str, choices) -> None:
    value = _value(config, name)
    if value not in choices:
        _refuse(config, name, nearest_name(str(value), choices).removeprefix(": "))


def _check_sizes_fit(config: ConfigDict) -> None:
    if config.model.name == "sonnet":
        if config.model.num_scalings != 2:
            _refuse(config, "model.num_scalings", "the sonnet model always has 2.")
        _check_range(config, "model.width", 4, LARGEST_DIM)
    multiple = 2**config.model.num_scalings
    if config.data.image_size % multiple:
        _refuse(config, "data.image_size", f"config.model.num_scalings halves it to a multiple of {multiple}.")
    quantizer, side = config.quantizer, config.data.image_size // multiple
    if quantizer.name == "binary_mapper" and config.model.code_dim != quantizer.bits:
        _refuse(config, "model.code_dim", f"set it to config.quantizer.bits={quantizer.bits}, one logit per bit.")
    if quantizer.name == "multi_scale_vq" and quantizer.scales[-1:] != (side,):
        _refuse(config, "quantizer.scales", f"the last one has to be {side}, the side of the latent grid.")
