"""DINOv2, from the publishers' files and from those of Hugging Face transformers."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vqjax.errors import UserError
from vqjax.importing.state_dict import Entry, StateDict, read_params, read_state_dict
from vqjax.models.dinov2 import GRID, INPUT_SIZE, DINOv2
from vqjax.models.vit import HEAD_DIM

_ADVICE = (
    "pass dinov2_vits14_pretrain.pth of facebookresearch/dinov2, or its base or large network, with registers or "
    "without; or model.safetensors of facebook/dinov2-small on Hugging Face, or its like"
)

# What transformers calls the entries of the publishers.
_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    # In its files, and in its modules from version 5 on.
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.query."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.key."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# Its networks of two layers have a gate.
_OF_GIANT = re.compile(r"\.mlp\.(w12|weights_in|gate_proj)\.")
_LAYERS = {
    "patch_embed": "patch_embed.proj",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def load_dinov2(arrays: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[DINOv2, dict[str, Any]]:
    """Turn the small, base or large network of DINOv2, with registers or without, into a module and its variables.

    The embeddings of positions, which are those of 37 x 37 patches, become those of 16 x 16 by the publishers' own
    interpolation, whichever file they come from; that of transformers differs by a tenth of a patch.

    Args:
      arrays: The state dict of the publishers or of transformers' ``Dinov2Model``, or the path of a file of it.

    Returns:
      The module and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or the network is the giant one.

    Source: facebookresearch/dinov2, ``models/vision_transformer.py``.
    """
    arrays = _with_published_names(read_state_dict(arrays))
    # What stands for hidden patches in training.
    arrays.pop("mask_token", None)
    if any(_OF_GIANT.search(key) for key in arrays):
        raise UserError("DINOv2 must be the small, base or large network, got the giant one, whose layers differ.")
    token, registers = arrays.get("cls_token"), arrays.get("register_tokens")
    if np.ndim(token) != 3 or token.size == 0 or token.size % HEAD_DIM or np.ndim(registers) not in (0, 3):
        raise UserError(f"arrays must have the entry cls_token of DINOv2, got {sorted(arrays)[:5]}; {_ADVICE}.")
    blocks = {key.split(".")[1] for key in arrays if key.startswith("blocks.")}
    module = DINOv2(token.shape[-1], len(blocks), 0 if registers is None else registers.shape[1])
    if "pos_embed" in arrays:
        arrays["pos_embed"] = _of_grid(arrays["pos_embed"], antialias=registers is not None)
    images = jnp.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return module, {"params": read_params(arrays, like, _entry_of, _ADVICE)}


def _with_published_names(arrays: StateDict) -> StateDict:
    """Return the entries of transformers by the names of the publishers, and others as they are."""
    if not any(key.startswith("embeddings.") for key in arrays):
        return arrays
    renamed = {}
    for key, value in arrays.items():
        for there, here in _NAMES:
            key = re.sub(there, here, key)
        renamed[key] = value
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [key.replace("query", part) for part in ("query", "key", "value")]
        # What does not fit together is left as it is, and refused by its name.
        if all(part in renamed and renamed[part].shape == renamed[key].shape for part in parts):
            renamed[key.replace("query", "qkv")] = np.concatenate([renamed.pop(part) for part in parts])
    return renamed


def _of_grid(embeddings: np.ndarray, *, antialias: bool) -> np.ndarray:
    """Embeddings of positions, interpolated for the size of the images as the publishers do it."""
    side = math.isqrt(embeddings.shape[1]) if embeddings.ndim == 3 else 0
    if side in (0, GRID) or embeddings.shape[1] != side**2 + 1:
        return embeddings
    of_class, of_patches = embeddings[:, :1], embeddings[:, 1:].reshape(side, side, -1)
    if antialias:
        of_patches = jax.image.resize(jnp.asarray(of_patches), (GRID, GRID, of_patches.shape[-1]), "bicubic")
    else:
        weights = _cubic_weights(side)
        of_patches = np.einsum("ir,jc,rcd->ijd", weights, weights, of_patches, optimize=True)
    of_patches = np.asarray(of_patches, np.float32).reshape(1, GRID * GRID, -1)
    return np.concatenate([of_class, of_patches], axis=1)


def _cubic_weights(side: int) -> Float[np.ndarray, "grid side"]:
    """Weights of cubic interpolation as PyTorch has them, for a grid that is a tenth of a patch too large."""
    places = (np.arange(GRID) + 0.5) * side / (GRID + 0.1) - 0.5
    first = np.floor(places).astype(int)
    weights = np.zeros((GRID, side))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(places - first - offset)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        index = np.clip(first + offset, 0, side - 1)
        np.add.at(weights, (np.arange(GRID), index), np.where(distance <= 1, near, far))
    return weights


def _entry_of(path: tuple[str, ...], num_axes: int) -> Entry:
    *layers, leaf = path
    if not layers:
        return Entry(leaf, (0, 1, 2))
    name = ".".join(_LAYERS.get(layer, layer.replace("blocks_", "blocks.")) for layer in layers)
    if leaf in ("ls1", "ls2"):
        return Entry(f"{name}.{leaf}.gamma", (0,))
    if num_axes == 1:
        return Entry(f"{name}.{'bias' if leaf == 'bias' else 'weight'}", (0,))
    return Entry(f"{name}.weight", (1, 0) if num_axes == 2 else (3, 2, 0, 1))
