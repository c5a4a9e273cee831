"""Config groups of a model, read from the model itself; and the pixels of its networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import FSQ, IBQ, LFQ, UserError, VectorQuantizer
from vqjax.functional import EntropyLoss
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder, VQGANDecoder, VQGANEncoder
from vqjax.models.registry import MODELS, build_model, describe, magvit, residual, timesformer, vit_vqgan, vqgan
from vqjax.quantizers.weightings import taming_legacy

TINY = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (), "latent_dim": 8}


@pytest.mark.parametrize(
    "model",
    [
        vqgan(VectorQuantizer(16, estimator="straight_through", **taming_legacy(0.25)), **TINY, code_dim=4),
        vqgan(IBQ(16), **TINY, code_norm=True, pixels="clip", image_channels=1, dropout=0.1),
        vit_vqgan(VectorQuantizer(16, distance="cosine"), dim=8, decoder_dim=16, decoder_depth=3, pixels="unit"),
        timesformer(VectorQuantizer(16), patch_size=4, dim=8, heads=2, code_dim=3, remat=True, pixels="unit"),
        magvit(LFQ(5), variant="open_magvit2", channels=32, multipliers=(1, 2), latent_dim=5),
        magvit(VectorQuantizer(16, regularizers=(EntropyLoss(0.1, temperature=0.01),)), pixels="unit", remat=True),
        residual(FSQ((8, 5)), width=8, latent_dim=2, precision="float32"),
    ],
)
def test_a_described_model_is_built_again(model):
    assert build_model(**describe(model)) == model


def test_what_no_config_holds_is_refused():
    size = TINY | {"latent_dim": None}
    encoder, decoder = VQGANEncoder(**TINY, dtype="float32"), VQGANDecoder(**size | {"num_res_blocks": 3})
    with pytest.raises(UserError, match="model must be one that a config can hold"):
        describe(VQVAE(encoder, VectorQuantizer(16), decoder))


def test_a_model_of_the_user_is_described_by_its_config(monkeypatch):
    def narrow(quantizer, *, width: int = 8):
        return VQVAE(SonnetEncoder(width=width, latent_dim=4), quantizer, SonnetDecoder(width=2 * width))

    monkeypatch.setitem(MODELS, "narrow", narrow)
    config = {"model": {"name": "narrow", "width": 4}, "quantizer": {"name": "vq", "num_codes": 16}, "seed": 0}
    model = build_model(config["model"], config["quantizer"])
    assert describe(model, config) == {"model": config["model"], "quantizer": config["quantizer"]}
    other = residual(FSQ((8, 5)), width=8, latent_dim=2)
    assert describe(other, config)["model"]["name"] == "residual"
    with pytest.raises(UserError, match="got SonnetEncoder and SonnetDecoder around VectorQuantizer"):
        describe(model)


MEAN, STD = np.array([0.4815, 0.4578, 0.4082]), np.array([0.2686, 0.2613, 0.2758])


@pytest.mark.full
@pytest.mark.parametrize(
    ("pixels", "inward", "outward"),
    [
        ("unit", lambda x: (x + 1) / 2, lambda y: 2 * y - 1),
        ("clip", lambda x: ((x + 1) / 2 - MEAN) / STD, lambda y: 2 * (y * STD + MEAN) - 1),
    ],
)
def test_networks_see_pixels_of_their_own_range(pixels, inward, outward):
    model = vqgan(VectorQuantizer(16), **TINY)
    images = np.clip(gaussian(1, 8, 8, 3), -1, 1)
    seen, images = jnp.float32(inward(images)), jnp.asarray(images)
    variables = model.init({"params": jax.random.key(0), "quantizer": jax.random.key(1)}, images)
    inner = model.apply(variables, seen, train=False)
    other = model.clone(pixels=pixels)
    outer = other.apply(variables, images, train=False)
    np.testing.assert_array_equal(outer.quantizer.indices, inner.quantizer.indices)
    np.testing.assert_allclose(outer.reconstruction, outward(np.asarray(inner.reconstruction)), atol=1e-5)
    features = other.apply(variables, outer.quantizer.quantized, train=False, method="decode_features")
    again = other.apply(variables, features, method="to_images")
    np.testing.assert_allclose(again, outer.reconstruction, atol=1e-6)
