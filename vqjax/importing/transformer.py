"""Transformers over tokens, trained with LlamaGen or taming-transformers."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError
from vqjax.importing.state_dict import Entry, StateDict, read_params, read_state_dict, takes_config
from vqjax.importing.vqgan import Arrays, shape_of
from vqjax.models.mingpt import MinGPT
from vqjax.models.transformer import CausalTransformer

_LLAMAGEN = {
    "token_table": "tok_embeddings",
    "class_table": "cls_embedding.embedding_table",
    "head": "output",
    "attention_norm": "attention_norm",
    "qkv": "attention.wqkv",
    "out": "attention.wo",
    "mlp_norm": "ffn_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}
_LLAMAGEN_OPTIONS = {"norm_eps": 1e-5, "rope_base": 10000}
_TAMING = {
    "positions": "pos_emb",
    "token_table": "tok_emb",
    "norm": "ln_f",
    "attention_norm": "ln1",
    "query": "attn.query",
    "key": "attn.key",
    "value": "attn.value",
    "out": "attn.proj",
    "mlp_norm": "ln2",
    "mlp_1": "mlp.0",
    "mlp_2": "mlp.2",
}


@takes_config
def llamagen_transformer(arrays: Arrays, config: Mapping[str, Any]) -> tuple[CausalTransformer, dict[str, Any]]:
    """Turn a class-conditional ``Transformer`` of LlamaGen into a model and its variables.

    Args:
      arrays: The state dict, ``{key: tensor.cpu().numpy() for key, tensor in state_dict.items()}``, or the path of a
        file with it: a ``.safetensors`` file or a checkpoint, of which nothing is executed.
      config: Arguments of the original model, of which ``n_head`` and ``block_size``, the number of tokens of a square
        image, cannot be read from the shapes of the arrays.

    Returns:
      The model and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or it is a different kind of model.

    Source: LlamaGen, ``autoregressive/models/gpt.py``.
    """
    arrays = read_state_dict(arrays)
    if any(key.startswith("cls_embedding.cap_proj.") for key in arrays):
        raise UserError("arrays must be those of a class-conditional model, got one of texts, which is not imported.")
    heads, tokens = _given(config, "n_head"), _given(config, "block_size")
    if (config.get("n_kv_head") or heads) != heads or config.get("cls_token_num", 1) != 1:
        raise UserError(
            "config must be of a class-conditional model with as many heads of keys as of queries, got n_kv_head="
            f"{config.get('n_kv_head')!r} and cls_token_num={config.get('cls_token_num')!r}; others are not imported."
        )
    for option, known in _LLAMAGEN_OPTIONS.items():
        if config.get(option, known) != known:
            raise UserError(f"config.{option} must be {known}, got {config[option]!r}; others are not imported.")
    if config.get("class_dropout_prob", 0.1) == 0:
        raise UserError(
            "config.class_dropout_prob must be above 0, got 0; models without an entry for no class are not imported."
        )
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise UserError(f"config.block_size must be a square number of tokens, got {tokens}.")
    (codes, dim), (classes, _) = (
        shape_of(arrays, f"{_LLAMAGEN[table]}.weight", 2, _ADVICE) for table in ("token_table", "class_table")
    )
    hidden, _ = shape_of(arrays, "layers.0.feed_forward.w1.weight", 2, _ADVICE)
    model = CausalTransformer(codes, (side, side), classes - 1, dim, _depth(arrays, "layers."), heads, mlp_dim=hidden)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, tokens), jnp.int32))["params"]

    def entry_of(path: tuple[str, ...], ndim: int) -> Entry:
        names = [re.sub(r"^blocks_(\d+)$", r"layers.\1", name) for name in path[:-1]]
        return Entry(
            ".".join([*(_LLAMAGEN.get(name, name) for name in names), "weight"]),
            (1, 0) if path[-1] == "kernel" else tuple(range(ndim)),
        )

    return model, {"params": read_params(arrays, like, entry_of, _ADVICE)}


@partial(takes_config, part="transformer_config")
def taming_transformer(arrays: Arrays, config: Mapping[str, Any]) -> tuple[MinGPT, dict[str, Any]]:
    """Turn a ``GPT`` of taming-transformers into a model and its variables.

    Args:
      arrays: As for :func:`llamagen_transformer`; entries may have the prefix ``transformer.``, and others may stand
        beside them.
      config: Arguments of the original model, of which ``n_head`` cannot be read from the shapes of the arrays.

    Returns:
      The model and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite.

    Source: taming-transformers, ``taming/modules/transformer/mingpt.py``.
    """
    arrays, prefix = read_state_dict(arrays), "transformer."
    if any(key.startswith(prefix) for key in arrays):
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    tokens, dim = shape_of(arrays, "tok_emb.weight", 2, _ADVICE)
    _, length, _ = shape_of(arrays, "pos_emb", 3, _ADVICE)
    depth = _depth(arrays, "blocks.")
    if config and config.get("n_unmasked"):
        raise UserError(f"config.n_unmasked must be 0, got {config['n_unmasked']}; others are not imported.")
    model = MinGPT(tokens, length, dim, depth, _given(config, "n_head"))
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]
    # Positions have an axis more there.
    arrays = arrays | {"pos_emb": arrays["pos_emb"][0]}

    def entry_of(path: tuple[str, ...], ndim: int) -> Entry:
        names = [re.sub(r"^blocks_(\d+)$", r"blocks.\1", name) for name in path]
        leaf = {"bias": ["bias"], "positions": []}.get(path[-1], ["weight"])
        modules = names if path[-1] == "positions" else names[:-1]
        axes = (1, 0) if path[-1] == "kernel" else tuple(range(ndim))
        return Entry(".".join([*(_TAMING.get(name, name) for name in modules), *leaf]), axes)

    # Constants, which a checkpoint need not hold.
    masks = {f"blocks.{number}.attn.mask": (1, 1, length, length) for number in range(depth)}
    masks = {name: shape for name, shape in masks.items() if name in arrays}
    params = read_params(arrays, like, entry_of, _ADVICE, masks)
    for name in masks:
        if not np.array_equal(arrays[name][0, 0], np.tri(length)):
            raise UserError(
                f"{name} must show each token those before it and itself, got others; models of n_unmasked > 0 are not "
                "imported."
            )
    return model, {"params": params}


_ADVICE = "pass the original's config, and the state dict of its transformer"


def _given(config: Mapping[str, Any] | None, name: str) -> int:
    if config is None or name not in config:
        raise UserError(f"config.{name} must be given, as the arrays do not tell it; got {sorted(config or {})}.")
    return int(config[name])


def _depth(arrays: StateDict, blocks: str) -> int:
    return len({key.removeprefix(blocks).partition(".")[0] for key in arrays if key.startswith(blocks)})
