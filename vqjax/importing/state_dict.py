"""State dicts of PyTorch modules as NumPy arrays, without PyTorch and without pickle."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vqjax.errors import UserError
from vqjax.runtime.paths import local_path

StateDict = dict[str, np.ndarray]


def read_state_dict(arrays: Mapping[str, Any] | str | os.PathLike) -> StateDict:
    """Read a state dict; floating-point numbers of any width become float32.

    Args:
      arrays: Arrays by name, or the path of a ``.safetensors`` file.

    Returns:
      Arrays by name.

    Raises:
      UserError: It holds something other than numbers, or the file cannot be read.

    Example:
      >>> read_state_dict({"weight": np.ones(2, np.float16)})
      {'weight': array([1., 1.], dtype=float32)}
    """
    if isinstance(arrays, str | os.PathLike):
        arrays = _read_safetensors(local_path(arrays, "arrays"))
    if not isinstance(arrays, Mapping):
        kind = type(arrays).__name__
        raise UserError(f"arrays must be a dict of NumPy arrays or the path of a .safetensors file, got {kind}.")
    return {key: _numbers(key, value) for key, value in arrays.items()}


def check_entries(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], advice: str, prefix: str = "") -> None:
    """Refuse a state dict that does not have exactly these entries, finite and of these shapes.

    Args:
      arrays: Arrays by name.
      shapes: The shape of each.
      advice: End of the message if entries or shapes differ.
      prefix: Prefix of these entries in the original state dict, for messages.

    Raises:
      UserError: It names every missing and surplus entry, or else every wrong shape, or else every entry with
        infinite or undefined numbers.
    """
    missing, surplus = (
        [f"{prefix}{key}" for key in sorted(keys)]
        for keys in (shapes.keys() - arrays.keys(), arrays.keys() - shapes.keys())
    )
    if missing or surplus:
        raise UserError(
            f"arrays must have the entries of this model, got missing {missing} and surplus {surplus}; {advice}."
        )
    wrong = [
        f"{prefix}{key} must have shape {list(shape)}, got {list(arrays[key].shape)}"
        for key, shape in shapes.items()
        if arrays[key].shape != shape
    ]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; {advice}.")
    infinite = [f"{prefix}{key}" for key in shapes if not np.isfinite(arrays[key]).all()]
    if infinite:
        raise UserError(f"arrays must be finite, got infinite or undefined numbers in {infinite}: training diverged.")


def _numbers(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic | jax.Array) else None
    if array is None or not (array.dtype == bool or jax.numpy.issubdtype(array.dtype, np.number)):
        kind = type(value).__name__ if array is None else f"an array of {array.dtype}"
        raise UserError(
            f"arrays[{key!r}] must be a NumPy array of numbers, got {kind}; pass "
            "{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}."
        )
    return array.astype(np.float32) if jax.numpy.issubdtype(array.dtype, np.floating) else array


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix != ".safetensors":
        raise UserError(
            f"arrays must be a .safetensors file, got {str(path)!r}; files that hold pickles are never read; write one "
            "in PyTorch with safetensors.torch.save_file(module.state_dict(), 'quantizer.safetensors')."
        )
    if not path.is_file():
        raise UserError(f"arrays must be an existing file, got {str(path)!r}, which does not exist.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"arrays must be a valid .safetensors file, got {str(path)!r}, which cannot be read ({error}); write it "
            "again."
        ) from error
