"""The Inception network of FID, from the files of pytorch-fid and of torch-fidelity."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vqjax.importing.batch_norms import without_norms
from vqjax.importing.state_dict import Entry, read_params, read_state_dict
from vqjax.models.inception import INPUT_SIZE, FIDInception

_ADVICE = "pass pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or its copy of torch-fidelity"


def load_inception(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[FIDInception, dict[str, Any]]:
    """Turn the Inception network of pytorch-fid into a module and its variables.

    Batch normalization, whose statistics are fixed, becomes part of the convolutions.

    Args:
      arrays: The state dict, or the path of a file of it.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite.

    Source: pytorch-fid, ``inception.py``.
    """
    arrays = {
        key: value
        for key, value in read_state_dict(arrays).items()
        # Steps of a training, and the classes' bias, which no metric uses.
        if not key.endswith("num_batches_tracked") and key != "fc.bias"
    }
    module = FIDInception()
    images = jnp.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return module, {"params": read_params(without_norms(arrays, "conv"), like, _entry_of, _ADVICE)}


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    name = ".".join(path[:-1])
    if path[-1] == "bias":
        return Entry(f"{name}.bias", (0,))
    return Entry(f"{name}.weight", (1, 0) if num_axes == 2 else (3, 2, 0, 1))
