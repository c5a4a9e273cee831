"""ViT-VQGANs of enhancing-transformers as models and variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.goldens import assert_equal, channels_last, golden, weights
from vqjax import UserError
from vqjax.importing import enhancing_transformers


def recorded():
    arrays, facts = golden("vit_vqgan")
    config = {name: facts[name] for name in ("image_size", "patch_size", "encoder", "decoder")}
    return arrays, config | {"quantizer": {"n_embed": facts["n_embed"], "embed_dim": facts["embed_dim"]}}


@pytest.mark.full
def test_the_model_is_the_recorded_one():
    arrays, config = recorded()
    model, variables = enhancing_transformers(weights(arrays), config)

    def loss(params, images):
        output = model.apply(variables | {"params": params}, images, train=False)
        return jnp.mean(jnp.square(output.reconstruction - images)) + output.quantizer.loss, output

    images = channels_last(arrays["x"])
    (gradient, of_images), output = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], images)
    assert_equal(gradient["quantizer"]["codes"], arrays["grad_codes"])
    assert_equal(gradient["decoder"]["conv_out"]["kernel"], np.moveaxis(arrays["grad_last_layer"], 1, -1))
    assert_equal(of_images, channels_last(arrays["grad_x"]))
    assert_equal(output.reconstruction, channels_last(arrays["reconstruction"]))
    np.testing.assert_array_equal(output.quantizer.indices.reshape(2, -1), arrays["indices"])
    assert_equal(output.quantizer.loss, arrays["quantizer_loss"])


def test_a_config_may_leave_out_any_size_and_the_norm():
    arrays, config = recorded()
    original = weights(arrays)
    partial = config | {"quantizer": {"embed_dim": config["quantizer"]["embed_dim"]}}
    assert enhancing_transformers(original, partial)[0] == enhancing_transformers(original, config)[0]
    plain, _ = enhancing_transformers(original, config | {"quantizer": config["quantizer"] | {"use_norm": False}})
    assert plain.quantizer.distance == "euclidean"
    heavier, _ = enhancing_transformers(original, config | {"quantizer": config["quantizer"] | {"beta": 1.0}})
    assert (plain.quantizer.commitment_weight, heavier.quantizer.commitment_weight) == (0.25, 1.0)


def test_what_is_another_model_is_rejected():
    arrays, config = recorded()
    original = weights(arrays)
    with pytest.raises(UserError, match=r"missing \[\] and surplus \['other'\]"):
        enhancing_transformers(original | {"other": np.ones(2)}, config)
    table = original["encoder.en_pos_embedding"] + 0.1
    with pytest.raises(UserError, match=r"encoder.en_pos_embedding must be the fixed embedding of positions"):
        enhancing_transformers(original | {"encoder.en_pos_embedding": table}, config)
    with pytest.raises(UserError, match=r"use_residual must be False"):
        enhancing_transformers(original, config | {"quantizer": config["quantizer"] | {"use_residual": True}})
