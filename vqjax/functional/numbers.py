"""Numbers that are arguments: in Python, or traced by JAX, which have no value to check yet."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float

Number = float | Float[Array, ""]
"""A number that is written down, or an array of no axes, which may be traced."""


def is_traced(value: object) -> bool:
    """Return whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def is_number(value: object, where: Callable[[Any], Any] = lambda value: True) -> bool:
    """Return whether a value is a real number for which a condition holds; booleans are no numbers.

    Args:
      value: Anything. Scalar arrays are numbers; of a traced one every condition is taken to hold.
      where: The condition.

    Returns:
      True or False.

    Example:
      >>> is_number(0.5, lambda share: share < 1), is_number(2, lambda share: share < 1), is_number(True)
      (True, False, False)
    """
    if isinstance(value, jax.Array):
        real = jnp.isdtype(value.dtype, ("real floating", "integral")) and value.ndim == 0
        return real and (is_traced(value) or bool(where(value)))
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(where(value))


def is_positive(value: object) -> bool:
    """Return whether a value is a finite number above zero."""
    return is_number(value, lambda number: 0 < number < math.inf)


def is_weight(value: object) -> bool:
    """Return whether a value is a finite number of at least zero."""
    return is_number(value, lambda number: 0 <= number < math.inf)


def is_zero(value: object) -> bool:
    """Return whether a number is known to be zero, so that what it weighs can be left out."""
    return not is_traced(value) and bool(value == 0)


def to_scalar(value: Any) -> Number:
    """Return a number as a float, and an array as one of float32: neither widens what it is combined with."""
    return value.astype(jnp.float32) if isinstance(value, jax.Array) else float(value)
