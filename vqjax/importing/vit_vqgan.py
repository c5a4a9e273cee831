"""ViT-VQGANs trained with enhancing-transformers."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import Entry, StateDict, read_model, read_state_dict, takes_config
from vqjax.importing.vqgan import Arrays, shape_of
from vqjax.models.registry import vit_vqgan
from vqjax.models.vit import HEAD_DIM, positions
from vqjax.models.vqvae import VQVAE
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.vector import VectorQuantizer

_POSITIONS = ("encoder.en_pos_embedding", "decoder.de_pos_embedding")


@takes_config
def enhancing_transformers(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``ViTVQ`` of enhancing-transformers into a model and its variables.

    The checkpoints of Table 4 of the rotation-trick paper have the same form. The model is for images in [0, 1], not
    in [-1, 1] as the other models are.

    Args:
      arrays: The state dict, ``{key: tensor.cpu().numpy() for key, tensor in state_dict.items()}``, or the path of a
        file with it: a ``.safetensors`` file or a checkpoint, of which nothing is executed. Entries of the losses
        (``loss.``) are left out.
      config: Parameters of the original model: ``image_size``, ``patch_size``, ``encoder`` and ``decoder`` (``dim``,
        ``depth``, ``heads``, ``mlp_dim``), and ``quantizer`` (``n_embed``, ``embed_dim``, ``beta``, ``use_norm``).
        Sizes that are left out are read from the shapes of the arrays.

    Returns:
      The model and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or it is a different kind of model.

    Source: enhancing-transformers, ``enhancing/modules/stage1/vitvqgan.py``.
    """
    arrays = {key: value for key, value in read_state_dict(arrays).items() if not key.startswith("loss.")}
    sizes, config = _sizes(arrays), dict(config or {})
    config |= {
        name: size | dict(config.get(name, {})) if isinstance(size, dict) else config.get(name, size)
        for name, size in sizes.items()
    }
    quantizer = config["quantizer"]
    if quantizer.get("use_residual", False):
        raise UserError("quantizer.use_residual must be False, got True; residual ViT-VQGANs are not imported.")
    size, patch = config["image_size"], config["patch_size"]
    encoder, decoder = (
        {name: config[part][name] for name in ("dim", "depth", "heads", "mlp_dim")} for part in ("encoder", "decoder")
    )
    codebook = GradientCodebook(weight=1.0)
    # The original passes the gradient around its normalization, to the latents as they were.
    normalized = {"distance": "cosine", "differentiate_norm": False} if quantizer.get("use_norm", True) else {}
    model = vit_vqgan(
        VectorQuantizer(
            quantizer["n_embed"],
            codebook=codebook,
            commitment_weight=quantizer.get("beta", 0.25),
            estimator="straight_through",
            **normalized,
        ),
        patch_size=patch,
        code_dim=quantizer["embed_dim"],
        **encoder,
        **{f"decoder_{name}": value for name, value in decoder.items()},
    )
    rows = size // patch
    tables = {
        name: positions(rows, rows, part["dim"]) for name, part in zip(_POSITIONS, (encoder, decoder), strict=True)
    }
    others = {name: (1, rows**2, table.shape[-1]) for name, table in tables.items()}
    advice = "pass the original's config, and the state dict of its autoencoder"
    params = read_model(arrays, model, (patch, patch, 3), _entry_of, advice, others)
    for name, table in tables.items():
        if not np.allclose(arrays[name], table.reshape(others[name]), atol=1e-5):
            raise UserError(f"{name} must be the fixed embedding of positions, got other numbers.")
    return model, {"params": params}


def _sizes(arrays: StateDict) -> dict[str, Any]:
    """The original's config, from the shapes of the arrays."""
    dim, _, patch, _ = shape_of(arrays, "encoder.to_patch_embedding.0.weight", 4)
    codes = shape_of(arrays, "quantizer.embedding.weight", 2)
    rows = math.isqrt(shape_of(arrays, _POSITIONS[0], 3)[1])

    def transformer(network: str, dim: int) -> dict[str, int]:
        layers = f"{network}.transformer.layers."
        qkv, mlp = (shape_of(arrays, f"{layers}0.{name}.weight", 2) for name in ("0.fn.to_qkv", "1.fn.net.0"))
        depth = len({key.removeprefix(layers).partition(".")[0] for key in arrays if key.startswith(layers)})
        return {"dim": dim, "depth": depth, "heads": qkv[0] // (3 * HEAD_DIM), "mlp_dim": mlp[0]}

    return {
        "image_size": rows * patch,
        "patch_size": patch,
        "encoder": transformer("encoder", dim),
        "decoder": transformer("decoder", shape_of(arrays, "decoder.to_pixel.1.weight", 4)[0]),
        "quantizer": {"n_embed": codes[0], "embed_dim": codes[1]},
    }


def _entry_of(path: tuple[str, ...], ndim: int) -> Entry:
    if ndim == 4:
        axes = (0, 3, 1, 2) if path[-2] == "conv_out" else (3, 2, 0, 1)
    else:
        axes = (1, 0) if path[-1] == "kernel" else tuple(range(ndim))
    return Entry(_original_name(path), axes)


def _original_name(path: tuple[str, ...]) -> str:
    network, *modules, leaf = path
    if network == "quantizer":
        return "quantizer.embedding.weight"
    leaf = "bias" if leaf == "bias" else "weight"
    if modules in (["to_codes"], ["from_codes"]):
        return f"{'pre_quant' if network == 'encoder' else 'post_quant'}.{leaf}"
    if modules in (["to_tokens"], ["conv_out"]):
        return f"{network}.{'to_patch_embedding.0' if network == 'encoder' else 'to_pixel.1'}.{leaf}"
    name = ".".join([network, *modules])
    name = re.sub(r"\.transformer\.block_(\d+)\.", r".transformer.layers.\1.", name)
    parts = {"norm_1": "0.norm", "qkv": "0.fn.to_qkv", "out": "0.fn.to_out"}
    parts |= {"norm_2": "1.norm", "mlp_1": "1.fn.net.0", "mlp_2": "1.fn.net.2"}
    place, _, last = name.rpartition(".")
    return f"{place}.{parts.get(last, last)}.{leaf}"
