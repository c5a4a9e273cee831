"""JSON that every reader accepts."""

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Turns a value into JSON text in which NaN and infinities are `null`, as JSON has no such numbers.

    Args:
      value: Nested mappings, sequences, strings, numbers; NumPy and JAX arrays and scalars are taken as well, and
        anything else as its `str`. Keys keep their order.
      indent: Spaces per level; None writes one line.

    Returns:
      JSON text as RFC 8259 defines it.

    Example:
      >>> strict_json({"loss": float("nan"), "dead_codes": np.int32(3)})
      '{"loss": null, "dead_codes": 3}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value).tolist())
    return str(value)
