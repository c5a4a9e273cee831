"""Variables in the boxes of metadata that Flax initializers may return, such as the names of sharded axes."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array


def read(module: nn.Module, collection: str, name: str) -> Array | None:
    """Return the value of a variable without its box; None if there is no such variable."""
    return nn.unbox(module.get_variable(collection, name))


def write(module: nn.Module, collection: str, name: str, value: Array) -> None:
    """Write the value of a variable into the box that it has."""
    module.put_variable(collection, name, nn.meta.replace_boxed(module.get_variable(collection, name), value))


def box_like(boxed: Any, value: Array) -> Any:
    """Return a value in the box of an array whose first axes it shares, with the names of these axes.

    A box of a kind that has no names stays with arrays of as many axes.
    """
    if isinstance(boxed, nn.Partitioned):
        return boxed.replace(value=value, names=boxed.names[: value.ndim])
    if isinstance(boxed, nn.meta.AxisMetadata) and nn.unbox(boxed).ndim == value.ndim:
        return boxed.replace_boxed(value)
    return value
