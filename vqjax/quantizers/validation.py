"""Validation of arguments: of the quantizers, and of the models and tasks around them."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from vqjax.errors import UserError
from vqjax.functional.numbers import is_number, is_positive, is_weight


def shapes_by_path(variables: PyTree) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf by its path, to compare trees and name what differs."""
    leaves = jax.tree.leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}


def use_python_numbers(settings: Any) -> None:
    """Make Python's numbers of NumPy's among the fields of a dataclass: they widen nothing, and a bool is one."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name, None)
        if isinstance(value, np.generic):
            object.__setattr__(settings, field.name, value.item())


def check_flags(module: nn.Module) -> None:
    """Refuse boolean fields that are not, as the text "False" would count as true, and an axis without a name."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.type is bool:
            require(isinstance(value, bool | np.bool_), field.name, value, "True or False")
        if field.name == "axis_name":
            named = value is None or isinstance(value, str)
            require(named, field.name, value, "the name that pmap or shard_map gave the axis, or None")


def check_input(z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> None:
    """Refuse vectors and masks that cannot be looked up."""
    for name, value in (("z", z), ("mask", mask)):
        if not hasattr(value, "dtype") and (name == "z" or value is not None):
            raise UserError(f"{name} must be an array, got {type(value).__name__}.")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise UserError(f"z must be floating-point vectors, got {z.dtype}; decode takes indices.")
    if z.ndim < 1 or z.shape[-1] < 1:
        raise UserError(f"z must have at least one feature along its last axis, got shape {z.shape}.")
    if mask is not None and (mask.shape != z.shape[:-1] or mask.dtype != jnp.bool_):
        expected = f"bool{list(z.shape[:-1])}, one value per token of z"
        raise UserError(f"mask must be {expected}, got {mask.dtype}{list(mask.shape)}.")


def is_fraction(value: object) -> bool:
    """Return True for a number of at least zero and below one."""
    return is_number(value, lambda number: 0 <= number < 1)


def is_count(value: object, smallest: int = 1) -> bool:
    """Return True for an integer that is not too small; a positive one by default."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= smallest


def require(valid: bool, name: str, value: object, expected: str, advice: str | None = None) -> None:
    """Refuse the value of an argument: "name must be expected, got value; advice."."""
    if not valid:
        # A module shows all its attributes, line by line.
        shown = f"{type(value).__name__}(...)" if isinstance(value, nn.Module) else repr(value)
        raise UserError(f"{name} must be {expected}, got {shown}{'' if advice is None else f'; {advice}'}.")


def require_count(
    name: str, value: Any, largest: int | None = None, advice: str | None = None, smallest: int = 1
) -> None:
    """Refuse what is not a positive integer, or not one from the smallest to the largest."""
    expected = "a positive integer" if largest is None else f"an integer in [{smallest}, {largest}]"
    require(is_count(value, smallest) and (largest is None or value <= largest), name, value, expected, advice)


def require_counts(name: str, values: Any, largest: int, advice: str) -> None:
    """Refuse what is not a tuple of integers from 1 to the largest, or is empty."""
    valid = isinstance(values, tuple | list) and all(is_count(value) and value <= largest for value in values)
    require(valid and len(values) > 0, name, values, f"one or more integers in [1, {largest}]", advice)


def require_weight(name: str, value: object) -> None:
    """Refuse what is not a finite number of at least 0."""
    require(is_weight(value), name, value, "a finite number of at least 0")


def require_positive(name: str, value: object) -> None:
    """Refuse what is not a finite number above 0."""
    require(is_positive(value), name, value, "a finite number above 0")


def require_probability(name: str, value: object) -> None:
    """Refuse what is neither a probability above 0 nor None, which disables the option."""
    in_range = value is None or is_number(value, lambda number: 0 < number <= 1)
    require(in_range, name, value, "a probability in (0, 1], or None")


def require_choice(name: str, value: object, choices: Iterable[str | None]) -> None:
    """Refuse what is not one of a few names."""
    known = isinstance(value, str | None) and value in tuple(choices)
    require(known, name, value, f"one of {', '.join(map(repr, choices))}")


def require_regularizers(value: object) -> None:
    """Require a tuple of regularizers."""
    known = isinstance(value, tuple) and all(hasattr(term, "needs_learned_codes") for term in value)
    require(known, "regularizers", value, "a tuple of regularizers such as (Diversity(0.1),)")
