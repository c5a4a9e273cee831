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

StateDict = dict[str, np.ndarray]


def read_state_dict(state: Mapping[str, Any] | str | os.PathLike) -> StateDict:
    """Reads a state dict; floating-point numbers of any width become float32.

    Args:
      state: Arrays by name, or the path of a ``.safetensors`` file.

    Returns:
      Arrays by name.

    Raises:
      UserError: It holds something other than numbers, or the file cannot be read.

    Example:
      >>> read_state_dict({"weight": np.ones(2, np.float16)})
      {'weight': array([1., 1.], dtype=float32)}
    """
    if isinstance(state, str | os.PathLike):
        state = _read_safetensors(Path(state))
    if not isinstance(state, Mapping):
        raise UserError(f"state is a {type(state).__name__}: pass a dict of NumPy arrays or a .safetensors path.")
    return {key: _numbers(key, value) for key, value in state.items()}


def check_entries(state: StateDict, shapes: Mapping[str, tuple[int, ...]], advice: str) -> None:
    """Refuses a state dict that has not exactly these entries, finite and of these shapes.

    Args:
      state: Arrays by name.
      shapes: The shape of each.
      advice: What to do about a wrong shape.

    Raises:
      UserError: It names every missing and surplus entry, or else every wrong shape, or else every entry with
        infinite or undefined numbers.
    """
    missing, surplus = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or surplus:
        raise UserError(
            f"state does not fit this quantizer: missing {missing}, surplus {surplus}. Construct the quantizer with "
            "the options that the state was trained with; the table of from_vector_quantize_pytorch translates them."
        )
    wrong = [
        f"{key} has shape {list(state[key].shape)} where the quantizer has {list(shape)}"
        for key, shape in shapes.items()
        if state[key].shape != shape
    ]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: {advice}")
    infinite = [key for key in shapes if not np.isfinite(state[key]).all()]
    if infinite:
        raise UserError(f"state has infinite or undefined numbers in {infinite}: its training had diverged.")


def _numbers(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic | jax.Array) else None
    if array is None or not (array.dtype == bool or jax.numpy.issubdtype(array.dtype, np.number)):
        kind = type(value).__name__ if array is None else f"array of {array.dtype}"
        raise UserError(
            f"state[{key!r}] is a {kind}: pass NumPy arrays of numbers, as "
            "{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()} makes them."
        )
    return array.astype(np.float32) if jax.numpy.issubdtype(array.dtype, np.floating) else array


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix != ".safetensors":
        raise UserError(
            f"state={str(path)!r} is not a .safetensors file; files that hold pickles are never read. Write one in "
            "PyTorch with safetensors.torch.save_file(module.state_dict(), 'quantizer.safetensors')."
        )
    if not path.is_file():
        raise UserError(f"state={str(path)!r} is not there: pass the path of an existing file.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"state={str(path)!r} cannot be read ({error}): write it again.") from error
