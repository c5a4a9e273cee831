"""State dicts of PyTorch modules as NumPy arrays, without PyTorch."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import load_file

from vqjax.errors import UserError, one_line
from vqjax.importing.torch_file import is_torch_file, read_torch_file
from vqjax.runtime.paths import local_path

StateDict = dict[str, np.ndarray]


def takes_config[**P, R](importer: Callable[P, R], part: str = "first_stage_config") -> Callable[P, R]:
    """Make an importer take the ``config`` as it was published, and say so where it stumbles over what is in it.

    Args:
      importer: A function of ``arrays`` and ``config``, the parameters of the original model.
      part: As of :func:`original_config`.

    Example:
      >>> @takes_config
      ... def read(arrays, config):
      ...     return config["n_embed"]
      >>> read({}, {"model": {"params": {"n_embed": 8}}})
      8
      >>> read({}, {"n_codes": 8})
      Traceback (most recent call last):
      vqjax.errors.UserError: config must be that of the original model, but cannot be used (KeyError: 'n_embed'); ...
    """
    signature = inspect.signature(importer)

    @functools.wraps(importer)
    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        has_config = given.arguments.get("config") is not None
        try:
            if has_config:
                given.arguments["config"] = original_config(given.arguments["config"], part)
            return importer(*given.args, **given.kwargs)
        except UserError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if not has_config:
                raise
            raise UserError(
                f"config must be that of the original model, but cannot be used ({type(error).__name__}: "
                f"{one_line(error)}); pass the one of the checkpoint, or leave it out if the importer can "
                "read the sizes from the shapes."
            ) from error

    return read


def original_config(config: Mapping[str, Any], part: str = "first_stage_config") -> Mapping[str, Any]:
    """Return the parameters of a model within the config that was published with it.

    Args:
      config: The contents of the file. The parameters may be those of a ``model`` (``params`` or ``init_args``), or of
        a part of it.
      part: That part, by default the tokenizer of a model of tokens or of latents.

    Example:
      >>> original_config({"model": {"target": "VQModel", "params": {"n_embed": 16}}})
      {'n_embed': 16}
    """
    for names in (("model",), ("params",), ("init_args",), (part,), ("params",)):
        inner = next((config[name] for name in names if isinstance(config.get(name), Mapping)), None)
        config = config if inner is None else inner
    return config


def read_state_dict(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> StateDict:
    """Read a state dict; floating-point numbers of any width become float32.

    Args:
      arrays: Arrays by name, or the path of a ``.safetensors`` file or of one that ``torch.save`` wrote, such as a
        checkpoint of PyTorch Lightning, of which nothing is executed; see
        :func:`vqjax.importing.torch_file.read_torch_file`.

    Returns:
      Arrays by name.

    Raises:
      UserError: It holds something other than numbers, or the file cannot be read.

    Example:
      >>> read_state_dict({"weight": np.ones(2, np.float16)})
      {'weight': array([1., 1.], dtype=float32)}
    """
    if isinstance(arrays, str | os.PathLike):
        arrays = _read_file(local_path(arrays, "arrays"))
    if not isinstance(arrays, Mapping):
        kind = type(arrays).__name__
        raise UserError(f"arrays must be a dict of NumPy arrays or the path of a file, got {kind}.")
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


class Entry(NamedTuple):
    """Place of a parameter in a state dict.

    Attributes:
      name: Name of the entry.
      axes: Axes of the parameter here, in the order that they have there.
      num_axes: Number of axes there, if the last ones are left out, all of them of length 1.
    """

    name: str
    axes: tuple[int, ...]
    num_axes: int | None = None

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the entry of a parameter of some shape."""
        return tuple(shape[axis] for axis in self.axes)[: self.num_axes]


def read_params(
    arrays: StateDict,
    like: Mapping[str, Any],
    entry_of: Callable[[tuple[str, ...], int], Entry],
    advice: str,
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Read the parameters of a Flax module, which must be all that a state dict holds.

    Args:
      arrays: Arrays by name.
      like: Parameters of the module, or their shapes.
      entry_of: The place of a parameter in the state dict, from its path and its number of axes.
      advice: End of the message if entries or shapes differ.
      others: Shapes of further entries, which are no parameters here.

    Returns:
      The parameters.

    Raises:
      UserError: As :func:`check_entries`.

    Example:
      >>> like = {"dense": {"kernel": np.zeros((3, 2))}}
      >>> params = read_params({"weight": np.ones((2, 3))}, like, lambda path, ndim: Entry("weight", (1, 0)), "")
      >>> params["dense"]["kernel"].shape
      (3, 2)
    """
    leaves = flax.traverse_util.flatten_dict(like)
    entries = {path: entry_of(path, leaf.ndim) for path, leaf in leaves.items()}
    shapes = {entry.name: entry.shape_there(leaves[path].shape) for path, entry in entries.items()}
    check_entries(arrays, {**shapes, **(others or {})}, advice)

    def read(path: tuple[str, ...], entry: Entry) -> jax.Array:
        whole = arrays[entry.name].reshape([leaves[path].shape[axis] for axis in entry.axes])
        return jax.numpy.asarray(whole.transpose(np.argsort(entry.axes)))

    return flax.traverse_util.unflatten_dict({path: read(path, entry) for path, entry in entries.items()})


def read_model(
    arrays: StateDict,
    model: nn.Module,
    image: tuple[int, int, int],
    entry_of: Callable[[tuple[str, ...], int], Entry],
    advice: str,
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Read the parameters of an autoencoder, which must be all that a state dict holds; see :func:`read_params`.

    Args:
      arrays: Arrays by name.
      model: The autoencoder.
      image: Height, width and channels of an image that it takes.
      entry_of: The place of a parameter in the state dict, from its path and its number of axes.
      advice: End of the message if entries or shapes differ.
      others: Shapes of further entries, which are no parameters here.

    Returns:
      The parameters.

    Raises:
      UserError: As :func:`check_entries`.
    """
    keys = {"params": jax.random.key(0), "quantizer": jax.random.key(1)}
    like = jax.eval_shape(model.init, keys, jax.numpy.zeros((1, *image), jax.numpy.float32))["params"]
    return read_params(arrays, like, entry_of, advice, others)


def write_params(params: Mapping[str, Any], entry_of: Callable[[tuple[str, ...], int], Entry]) -> StateDict:
    """Write the parameters of a Flax module as a state dict: the inverse of :func:`read_params`.

    Args:
      params: The parameters.
      entry_of: As for :func:`read_params`.

    Returns:
      Arrays by name.

    Example:
      >>> params = {"dense": {"kernel": np.zeros((3, 2))}}
      >>> write_params(params, lambda path, ndim: Entry("weight", (1, 0)))["weight"].shape
      (2, 3)
    """
    arrays = {}
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        entry = entry_of(path, leaf.ndim)
        array = np.asarray(leaf).transpose(entry.axes).reshape(entry.shape_there(leaf.shape))
        # safetensors writes the memory of an array, without a look at its strides.
        arrays[entry.name] = np.ascontiguousarray(array)
    return arrays


def _numbers(key: Any, value: Any) -> np.ndarray:
    if not isinstance(key, str):
        raise UserError(f"arrays must have names for keys, got {key!r}; pass a state dict.")
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic | jax.Array) else None
    if array is None or not (array.dtype == bool or jax.numpy.issubdtype(array.dtype, np.number)):
        kind = type(value).__name__ if array is None else f"an array of {array.dtype}"
        raise UserError(
            f"arrays[{key!r}] must be a NumPy array of numbers, got {kind}; pass "
            "{key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}."
        )
    return array.astype(np.float32) if jax.numpy.issubdtype(array.dtype, np.floating) else array


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"file must be an existing file, got {str(path)!r}, which {found}.")
    if path.suffix != ".safetensors":
        if is_torch_file(path):
            return read_torch_file(path)
        if _is_msgpack(path):
            return _read_msgpack(path)
        raise UserError(
            f"file must be a .safetensors file or one that torch.save or Flax wrote, got {str(path)!r}, which begins "
            "as none of these does; write one in PyTorch with safetensors.torch.save_file(module.state_dict(), "
            "'model.safetensors')."
        )
    try:
        return load_file(path)
    except Exception as error:  # also those of dtypes that NumPy lacks
        raise UserError(
            f"file must be a valid .safetensors file, got {str(path)!r}, which cannot be read ({one_line(error)}); "
            "write it again."
        ) from error


def _is_msgpack(path: Path) -> bool:
    """Whether a file begins with a map of MessagePack, as what Flax serializes does."""
    with path.open("rb") as file:
        start = file.read(1)
    return bool(start) and (start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF))


def _read_msgpack(path: Path) -> dict[str, Any]:
    """Arrays that Flax has serialized, by dotted names."""
    try:
        return flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(path.read_bytes()), sep=".")
    except Exception as error:
        # A damaged file can raise anything.
        raise UserError(f"{path} cannot be read ({one_line(error)}); fetch or save it again.") from error
