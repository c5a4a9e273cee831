"""I3D, the network of the Fréchet video distance, from the files of pytorch-i3d and of VideoGPT."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.importing.batch_norms import without_norms
from vqjax.importing.state_dict import Entry, StateDict, read_params, read_state_dict
from vqjax.models.i3d import CLASSES, I3D, INPUT_SIZE, SMALLEST_FRAMES

_ADVICE = "pass i3d_pretrained_400.pt of VideoGPT, or rgb_imagenet.pt of pytorch-i3d"
_FIRST, _LAST = "Conv3d_1a_7x7.conv3d.weight", "logits.conv3d.weight"


def load_i3d(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[I3D, dict[str, Any]]:
    """Turn the network ``InceptionI3d`` of pytorch-i3d into a module and its variables.

    Batch normalization, whose statistics are fixed, becomes part of the convolutions. Published distances are those of
    TensorFlow Hub's weights, as in VideoGPT's file; pytorch-i3d's file has other weights, of the same shapes.

    Args:
      arrays: The state dict, or the path of a file of it.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite; or the network is of optical flow, or
        of other classes.

    Source: pytorch-i3d, ``pytorch_i3d.py``; VideoGPT, ``convert_tf_pretrained.py``.
    """
    arrays = {
        key: value
        for key, value in read_state_dict(arrays).items()
        if not key.endswith("num_batches_tracked")  # steps of a training
    }
    _check_kind(arrays)
    module = I3D()
    clips = jnp.zeros((1, SMALLEST_FRAMES, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), clips)["params"]
    return module, {"params": read_params(without_norms(arrays, "conv3d"), like, _entry_of, _ADVICE)}


def _check_kind(arrays: StateDict) -> None:
    """Refuse other networks of the same authors, and files of no such network, by what they are."""
    looks = None
    if _FIRST not in arrays or _LAST not in arrays:
        missing = [name for name in (_FIRST, _LAST) if name not in arrays]
        looks = f"entries such as {sorted(arrays)[:3]}, which lack {' and '.join(missing)}"
    elif arrays[_FIRST].shape[1:2] == (2,):
        looks = "the network of optical flow, which lacks a third channel"
    elif (classes := arrays[_LAST].shape[0]) != CLASSES:
        looks = f"a network of {classes} classes, which lacks the 400 of Kinetics"
    if looks is not None:
        raise UserError(f"arrays must be of I3D for colors with 400 classes, got {looks}; {_ADVICE}.")


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    name = ".".join(path[:-1]) if "conv3d" in path else f"{path[0]}.conv3d"
    return Entry(f"{name}.bias", (0,)) if num_axes == 1 else Entry(f"{name}.weight", (4, 3, 0, 1, 2))
