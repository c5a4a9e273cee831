"""Imported transformers give the recorded logits of the originals."""

import chex
import jax
import numpy as np
import pytest

from helpers.goldens import assert_equal, golden, weights
from vqjax.errors import UserError
from vqjax.importing import llamagen_transformer, taming_transformer


def test_recorded_logits_of_llamagen():
    arrays, facts = golden("llamagen_gpt")
    model, variables = llamagen_transformer(weights(arrays), facts["args"])
    assert (model.num_codes, model.grid, model.num_classes, model.heads) == (32, (4, 4), 5, 4)
    # No token is before itself, so that the last one plays no part.
    tokens = np.pad(arrays["ids"], ((0, 0), (0, 1))).astype(np.int32)
    logits = jax.jit(lambda *a: model.apply(*a, train=False))(variables, tokens, arrays["classes"].astype(np.int32))
    assert_equal(logits, arrays["logits"])


def test_recorded_logits_of_taming_transformers():
    arrays, facts = golden("taming_mingpt")
    model, variables = taming_transformer(weights(arrays), facts)
    assert (model.num_tokens, model.block_size, model.depth) == (40, 20, 2)
    logits = jax.jit(model.apply)(variables, arrays["ids"].astype(np.int32))
    assert_equal(logits, arrays["logits"])


def test_the_published_config_of_a_transformer_of_taming_is_taken():
    """Bugs: the part of its tokenizer was taken, and masks, which are constants, had to be there."""
    arrays, facts = golden("taming_mingpt")
    original = weights(arrays)
    alone = {f"transformer.{name}": value for name, value in original.items() if not name.endswith(".attn.mask")}
    parts = {"first_stage_config": {"params": {"n_embed": 8}}, "transformer_config": {"params": facts}}
    model, variables = taming_transformer(alone, {"model": {"params": parts}})
    expected, expected_variables = taming_transformer(original, facts)
    assert model == expected
    chex.assert_trees_all_equal(variables, expected_variables)
    with pytest.raises(UserError, match=r"config.n_unmasked must be 0, got 4"):
        taming_transformer(original, facts | {"n_unmasked": 4})


def test_models_of_taming_that_see_what_follows_are_refused():
    """Bug: those of n_unmasked > 0 had other logits than the original's."""
    arrays, facts = golden("taming_mingpt")
    original = weights(arrays)
    original["blocks.1.attn.mask"][..., :4, :4] = 1
    with pytest.raises(UserError, match=r"blocks.1.attn.mask must show each token those before it and itself"):
        taming_transformer(original, facts)


def llamagen_arrays():
    shapes = {"tok_embeddings": (8, 8), "cls_embedding.embedding_table": (4, 8), "output": (8, 8), "norm": (8,)}
    shapes |= {f"layers.0.{name}": (8,) for name in ("attention_norm", "ffn_norm")}
    shapes |= {"layers.0.attention.wqkv": (24, 8), "layers.0.attention.wo": (8, 8)}
    shapes |= {f"layers.0.feed_forward.{name}": shape for name, shape in WIDTHS.items()}
    return {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}


WIDTHS = {"w1": (16, 8), "w2": (8, 16), "w3": (16, 8)}
CONFIG = {"n_head": 2, "block_size": 4}


def test_sizes_of_llamagen_are_read_from_the_shapes():
    model, _ = llamagen_transformer(llamagen_arrays(), CONFIG)
    assert (model.num_codes, model.grid, model.num_classes, model.dim, model.mlp_dim) == (8, (2, 2), 3, 8, 16)


@pytest.mark.parametrize(
    ("config", "left_out", "message"),
    [
        ({"n_head": 2}, None, "config.block_size must be given"),
        (None, None, "config.n_head must be given"),
        (CONFIG | {"norm_eps": 1e-6}, None, "config.norm_eps must be 1e-05, got 1e-06"),
        (CONFIG | {"rope_base": 500_000}, None, "config.rope_base must be 10000"),
        (CONFIG | {"class_dropout_prob": 0}, None, "config.class_dropout_prob must be above 0"),
        (CONFIG, "cls_embedding.embedding_table.weight", "embedding_table.weight' of 2 axes, .* of its transformer"),
        (CONFIG | {"block_size": 5}, None, "must be a square number of tokens, got 5"),
        (CONFIG | {"n_kv_head": 1}, None, "as many heads of keys as of queries, got n_kv_head=1"),
        (CONFIG | {"cls_token_num": 120}, None, "cls_token_num=120"),
        (CONFIG, "norm.weight", r"got missing \['norm.weight'\]"),
    ],
)
def test_other_models_are_refused(config, left_out, message, as_users_run_it):
    arrays = {name: array for name, array in llamagen_arrays().items() if name != left_out}
    with pytest.raises(UserError, match=message):
        llamagen_transformer(arrays, config)
