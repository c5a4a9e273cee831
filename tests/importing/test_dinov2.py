"""DINOv2: what its files hold, and what is refused; compared with its originals in tests/parity/test_dinov2.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.networks import dinov2
from vqjax import UserError
from vqjax.importing.dinov2 import load_dinov2


@pytest.mark.parametrize("registers", [0, 4])
def test_a_network_is_read_from_both_layouts(registers):
    """That of the publishers, and that of transformers with a key and a value of their own."""
    arrays = dinov2(registers=registers)
    module, variables = load_dinov2(arrays)
    assert (module.dim, module.depth, module.registers) == (64, 1, registers)
    names = {
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "pos_embed": "embeddings.position_embeddings",
        "blocks.0.": "encoder.layer.0.",
        "attn.proj.": "attention.output.dense.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    others = {}
    for key, value in arrays.items():
        if "qkv" in key:
            parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            layer = "encoder.layer.0.attention.attention"
            others |= {f"{layer}.{name}.{key.rpartition('.')[2]}": part for name, part in parts}
            continue
        key = f"embeddings.{key}" if key.endswith("token") or key == "register_tokens" else key
        key = key.replace("norm.", "layernorm.") if key.startswith("norm.") else key
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        others[key] = value
    jax.tree.map(np.testing.assert_array_equal, load_dinov2(others)[1], variables)


@pytest.mark.full
def test_the_small_network_has_the_size_of_the_original():
    """22,056,576 parameters with the 37 x 37 positions and the token of hidden patches, in facebookresearch/dinov2."""
    arrays = dinov2(dim=384, depth=12, side=37)
    assert sum(array.size for array in arrays.values()) == 22_056_576
    assert load_dinov2(arrays)[1]["params"]["pos_embed"].shape == (1, 257, 384)


def test_positions_keep_their_place_when_they_are_interpolated():
    """Constant ones do not change; those of one patch of 37 x 37 go to its place in 16 x 16."""
    arrays = dinov2(side=37)
    arrays["pos_embed"] = np.zeros_like(arrays["pos_embed"])
    arrays["pos_embed"][0, 1 + 31 * 37 + 5, 0] = arrays["pos_embed"][0, :, 1] = 1
    read = load_dinov2(arrays)[1]["params"]["pos_embed"]
    np.testing.assert_allclose(read[0, :, 1], 1, atol=1e-5)
    largest = divmod(int(jnp.argmax(read[0, 1:, 0])), 16)
    assert largest == (13, 2)  # (31.5, 5.5) * 16 / 37 - 0.5


def test_what_is_no_such_network_is_refused():
    arrays = dinov2()
    del arrays["blocks.0.attn.qkv.bias"]
    with pytest.raises(UserError, match=r"got missing \['blocks.0.attn.qkv.bias'\] and surplus .*; pass dinov2_vits14"):
        load_dinov2(arrays)
    with pytest.raises(UserError, match=r"pos_embed must have shape \[1, 257, 64\], got \[1, 200, 64\]; pass"):
        load_dinov2(dinov2() | {"pos_embed": np.zeros((1, 200, 64))})
    with pytest.raises(UserError, match=r"must have the entry cls_token of DINOv2, got \['weight'\]"):
        load_dinov2({"weight": np.ones(3)})
    with pytest.raises(UserError, match="must be the small, base or large network, got the giant one"):
        load_dinov2(dinov2() | {"blocks.0.mlp.w12.weight": np.ones((2, 2))})


def test_images_of_another_size_are_refused():
    module, variables = load_dinov2(dinov2())
    with pytest.raises(UserError, match=r"images must have 224 x 224 pixels, got shape \(1, 28, 28, 3\); resize them"):
        module.apply(variables, jnp.zeros((1, 28, 28, 3)))
