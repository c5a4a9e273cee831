"""LPIPS from the files of its authors, of torchvision, and of tokenizers that were trained with it."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.importing.features import load_features, with_torchvision_names
from vqjax.importing.state_dict import Entry, read_params, read_state_dict
from vqjax.models.lpips import LPIPS

# The heads appear twice in the files of the package lpips.
_LEFT_OUT = re.compile(r"^(scaling_layer\.|lins\.|classifier\.)")
# Sums of the first heads of version 0.0 for AlexNet and VGG, which saw other inputs; the files have the same form.
_OLD_HEADS = (2.5659, 3.6416)
_ADVICE = "pass the state dict of LPIPS 0.1 with net='vgg' or net='alex'"


def load_lpips(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[LPIPS, dict[str, Any]]:
    """Turn LPIPS 0.1 of PyTorch into a module and its variables.

    Args:
      arrays: The state dict, or the path of a ``.safetensors`` file, of one of these: ``LPIPS`` of the package lpips,
        with ``net="vgg"`` or ``"alex"``; a tokenizer that was trained with it, such as a ``VQModel`` of
        taming-transformers; or torchvision's ``vgg16`` or ``alexnet`` together with the heads that the package holds,
        ``torchvision_state_dict | heads_state_dict``.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or the heads are those of LPIPS 0.0.

    Source: PerceptualSimilarity, ``lpips/lpips.py``; taming-transformers, ``taming/modules/losses/lpips.py``.
    """
    arrays = with_torchvision_names(read_state_dict(arrays))
    if "features.0.weight" not in arrays or "lin0.model.1.weight" not in arrays:
        raise UserError(
            "arrays must have the entries features.0.weight or net.slice1.0.weight, and lin0.model.1.weight, got "
            f"{sorted(arrays)[:5]}; pass the state dict of LPIPS, or those of the network and of its heads together."
        )
    if np.isclose(np.sum(arrays["lin0.model.1.weight"]), _OLD_HEADS, atol=5e-4).any():
        raise UserError("arrays must hold the heads of LPIPS 0.1, got those of 0.0; pass those of the directory v0.1.")
    known = {key: value for key, value in arrays.items() if not _LEFT_OUT.match(key)}
    if surplus := sorted(key for key in known if not key.startswith(("features.", "lin"))):
        raise UserError(f"arrays must have the entries of this model, got surplus {surplus}; {_ADVICE}.")
    network, variables = load_features(known)
    module = LPIPS(network)
    images = jnp.zeros((1, 64, 64, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images, images)["params"]
    # Convolutions of 1x1 to one channel there: [1, features, 1, 1].
    heads = {key: _head(value) for key, value in known.items() if key.startswith("lin")}
    weights = {name: leaf for name, leaf in like.items() if name != "network"}
    params = read_params(heads, weights, _entry_of, _ADVICE)
    return module, {"params": {"network": variables["params"], **params}}


def _head(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(-1) if weight.shape[2:] == (1, 1) else weight


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    del num_axes
    return Entry(f"lin{path[0].removeprefix('weight_')}.model.1.weight", (0,))
