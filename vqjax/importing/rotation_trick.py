"""VQ-VAEs trained with the official code of the rotation trick (Table 1 of the paper)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import StateDict, check_entries, read_state_dict, takes_config
from vqjax.importing.vqgan import Arrays, encoder_sizes, vqgan_model
from vqjax.models.vqvae import VQVAE
from vqjax.quantizers.codebooks import EMACodebook
from vqjax.quantizers.vector import VectorQuantizer

_NAMES = {
    "quant_conv.weight": "pre_quant_proj.0.weight",
    "quant_conv.bias": "pre_quant_proj.0.bias",
    "encoder.norm_codes.weight": "pre_quant_proj.1.weight",
    "encoder.norm_codes.bias": "pre_quant_proj.1.bias",
    "post_quant_conv.weight": "post_quant_proj.weight",
    "post_quant_conv.bias": "post_quant_proj.bias",
}
_CODEBOOK = "vq._codebook."
_ADVICE = "pass the entry 'model' of the checkpoint"
_MODELS = {"vqvae": "straight_through", "rot_vqvae": "rotation"}


@takes_config
def rotation_trick(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``VQVAE`` of the official code of the rotation trick into a model and its variables.

    These are the models of Table 1. The checkpoints of Table 3 have the form of :func:`taming`, those of Table 4 that
    of :func:`enhancing_transformers`.

    The original takes images normalized as for CLIP; the model here does so itself, and takes images in [-1, 1] as
    all others do. The codebook goes on from its moving averages. A cosine code that was not used for hundreds of
    batches has shrunk to zero there, where nothing is nearest to it; here it is a copy of a used code that comes before
    it and is therefore chosen in its place (of a later one, if there is none).

    Args:
      arrays: The state dict, or the path of ``{n}_model.pth``, of which nothing is executed.
      config: The original's arguments ``codebook``, ``"euclidean"`` or ``"cosine"``; ``model``, ``"vqvae"`` or
        ``"rot_vqvae"``; and ``commit_weight``. ``codebook`` is read from the arrays if it is left out. The others
        matter in training only; by default they are ``"rot_vqvae"`` and 1.

    Returns:
      The model and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or it is a different kind of model.

    Source: cfifty/rotation_trick, ``src/models/vq_vae.py``.
    """
    config = config or {}
    arrays = {key.removeprefix("module."): value for key, value in read_state_dict(arrays).items()}
    state = {key.removeprefix(_CODEBOOK): value for key, value in arrays.items() if key.startswith(_CODEBOOK)}
    arrays = {key: value for key, value in arrays.items() if not key.startswith(_CODEBOOK)}
    codes = _codes(state)
    sizes = encoder_sizes(arrays, r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.", "encoder.mid.attn_1.")
    is_cosine = _is_cosine(codes, arrays)
    distance = config.get("codebook", "cosine" if is_cosine else "euclidean")
    if distance != ("cosine" if is_cosine else "euclidean"):
        found = "have" if is_cosine else "do not have"
        raise UserError(f"codebook must be that of the arrays, got {distance!r}: their codes {found} unit length.")
    estimator = config.get("model", "rot_vqvae")
    if estimator not in _MODELS:
        raise UserError(
            f"model must be one of {', '.join(map(repr, _MODELS))}, got {estimator!r}; pass 'vqvae' for models "
            "that were trained with other gradients, which the task 'decoder_gradient' has."
        )
    quantizer = VectorQuantizer(
        len(codes),
        distance=distance,
        estimator=_MODELS[estimator],
        codebook=EMACodebook(decay=0.8, smoothing=1e-5, start="sums_only"),
        commitment_weight=config.get("commit_weight", 1.0),
    )
    taming_config = {"ddconfig": sizes, "embed_dim": codes.shape[1] if "post_quant_proj.weight" in arrays else None}
    options = {"pixels": "clip", "code_norm": "pre_quant_proj.1.weight" in arrays}
    model, variables = vqgan_model(arrays, taming_config, quantizer, lambda name: _NAMES.get(name, name), **options)
    return model, variables | {"codebook": {"quantizer": _codebook(state, is_cosine)}}


def _codes(state: StateDict) -> np.ndarray:
    """The codes, of an intact codebook."""
    embed = state.get("embed")
    if embed is None or embed.ndim != 3 or embed.shape[0] != 1:
        raise UserError(f"arrays must have one codebook '{_CODEBOOK}embed', got {sorted(state)}; {_ADVICE}.")
    shapes = {"initted": (1,), "embed": embed.shape, "embed_avg": embed.shape, "cluster_size": embed.shape[:2]}
    check_entries(state, shapes, _ADVICE, _CODEBOOK)
    return embed[0]


def _is_cosine(codes: np.ndarray, arrays: StateDict) -> bool:
    """Whether a codebook is for cosine similarity: its codes have unit length, but for those that have shrunk."""
    if "pre_quant_proj.0.weight" in arrays:
        return "pre_quant_proj.1.weight" in arrays
    lengths = np.linalg.norm(codes, axis=1)
    return bool(np.any(lengths > 0.5) and np.all((np.abs(lengths - 1) < 1e-3) | (lengths < 1e-3)))


def _codebook(state: StateDict, is_cosine: bool) -> dict[str, jax.Array]:
    """The variables of the quantizer."""
    codes, sums, counts = (state[name][0] for name in ("embed", "embed_avg", "cluster_size"))
    if is_cosine:
        used = np.flatnonzero(np.linalg.norm(codes, axis=1) > 0.5)
        if not used.size:
            raise UserError(f"{_CODEBOOK}embed must have a code that is not zero; {_ADVICE}.")
        unused = np.setdiff1d(np.arange(len(codes)), used)
        before = used[np.maximum(np.searchsorted(used, unused) - 1, 0)]
        codes, sums = codes.copy(), sums.copy()
        codes[unused] = sums[unused] = codes[before]
    average = counts.mean()
    relative = counts / average if average > 0 else np.ones_like(counts)
    return jax.tree.map(jnp.asarray, {"codes": codes, "sums": sums, "counts": counts, "relative_usage": relative})
