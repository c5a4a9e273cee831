"""Encoder and decoder of ViT-VQGAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError
from vqjax.models.vit import ViTDecoder, ViTEncoder, positions

SMALL = {"patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 8}


BASE = {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}
LARGE = {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120}


@pytest.mark.parametrize(("encoder", "decoder", "millions"), [({}, {}, 50.9), (BASE, BASE, 170.7), ({}, LARGE, 613.5)])
def test_the_published_models_have_the_published_number_of_parameters(encoder, decoder, millions):
    # Sizes of enhancing-transformers, with the codebook.
    shapes = [
        jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        for module, x in (
            (ViTEncoder(**encoder, code_dim=32), jnp.zeros((1, 8, 8, 3))),
            (ViTDecoder(**decoder), jnp.zeros((1, 1, 1, 32))),
        )
    ]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) + 8192 * 32
    assert round(count / 1e6, 1) == millions


def test_the_first_half_of_the_positions_is_the_column_and_the_second_the_row():
    table = positions(3, 5, 8)
    assert table.shape == (3, 5, 8)
    assert (table[:, :, :4] == table[:1, :, :4]).all()
    assert (table[:, :, 4:] == table[:, :1, 4:]).all()
    np.testing.assert_allclose(table[2, 3, :2], np.sin([3, 3 / 100]), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3, 6:], np.cos([2, 2 / 100]), rtol=1e-6)


@pytest.mark.full
def test_images_that_are_not_square():
    module, images = ViTEncoder(**SMALL, code_dim=3), gaussian(2, 8, 12, 3)
    codes, _ = jax.jit(module.init_with_output)(jax.random.key(0), images)
    assert codes.shape == (2, 2, 3, 3)
    assert jax.jit(ViTDecoder(**SMALL).init_with_output)(jax.random.key(0), codes)[0].shape == images.shape


@pytest.mark.full
def test_a_patch_is_made_from_its_own_token_by_the_last_layer():
    module, codes = ViTDecoder(**SMALL), gaussian(1, 2, 3, 5)
    images, variables = jax.jit(module.init_with_output)(jax.random.key(0), codes)
    features = module.apply(variables, codes, method="features")
    np.testing.assert_allclose(module.apply(variables, features, method="to_images"), images, atol=1e-5)
    images = module.apply(variables, features, method="to_images")
    changed = module.apply(variables, features.at[0, 1, 2].add(1.0), method="to_images")
    differs = np.asarray(jnp.any(changed != images, axis=(0, 3)))
    assert differs[4:, 8:].all()
    assert not differs[:4].any()
    assert not differs[:, :8].any()


@pytest.mark.full
def test_recomputed_blocks_have_the_same_gradient():
    images = gaussian(1, 8, 8, 3)
    variables = jax.jit(ViTEncoder(**SMALL).init)(jax.random.key(0), images)

    def gradient(remat):
        module = ViTEncoder(**SMALL, remat=remat)
        return jax.jit(jax.grad(lambda variables: jnp.sum(jnp.square(module.apply(variables, images)))))(variables)

    for first, second in zip(*(jax.tree.leaves(gradient(remat)) for remat in (False, True)), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_bfloat16_keeps_codes_and_images_in_float32():
    codes, _ = ViTEncoder(**SMALL, dtype="bfloat16").init_with_output(jax.random.key(0), gaussian(1, 4, 4, 3))
    images, _ = ViTDecoder(**SMALL, dtype="bfloat16").init_with_output(jax.random.key(0), codes)
    assert codes.dtype == images.dtype == jnp.float32


def test_patches_that_do_not_fit_are_rejected():
    with pytest.raises(UserError, match=r"patch_size=4 divides, got 8 x 10; resize or crop them"):
        ViTEncoder(**SMALL).init(jax.random.key(0), jnp.zeros((1, 8, 10, 3)))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("make", [ViTEncoder, ViTDecoder])
def test_sizes_that_make_no_model_are_rejected(make):
    for field in ("patch_size", "dim", "depth", "heads", "mlp_dim"):
        for value in (0, -1, 8.0, True, "8", None, 10**9):
            with pytest.raises(UserError, match=rf"^{field} must be an integer in \[1, 8192\], got {value!r}"):
                make(**{field: value})
    for field, value in (("remat", "False"), ("dtype", "nonsense")):
        with pytest.raises(UserError, match=rf"^{field} must be .*, got {value!r}"):
            make(**{field: value})


@pytest.mark.usefixtures("as_users_run_it")
def test_sizes_of_codes_and_images_are_checked():
    with pytest.raises(UserError, match=r"^code_dim must be an integer in \[1, 8192\], got 0"):
        ViTEncoder(code_dim=0)
    with pytest.raises(UserError, match=r"^image_channels must be an integer in \[1, 8192\], got -1"):
        ViTDecoder(image_channels=-1)
