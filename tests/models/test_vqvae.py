"""The architectures are the published ones, and their methods agree with each other."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import EMACodebook, VectorQuantizer
from vqjax.errors import UserError
from vqjax.models import VQVAE, ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.cnn import ResidualBlock, ResidualStack
from vqjax.models.registry import build_model, residual, sonnet

STUDY = {"name": "residual", "width": 256, "num_residual_blocks": 2, "num_scalings": 2, "latent_dim": None}
SONNET = {"name": "sonnet", "width": 128, "num_residual_blocks": 2, "latent_dim": 64}


def random_variables(module, x):
    """Filled by NumPy: an initializer is compiled anew for every shape."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.2 * gaussian(*leaf.shape, seed=leaf.size), variables)


def small(name, **quantizer):
    options = {"name": name, "width": 8, "num_residual_blocks": 1, "latent_dim": 4}
    model = build_model(options, {"name": "vq", "num_codes": 16} | quantizer)
    images = jnp.tanh(gaussian(4, 8, 8, 3))
    return model, random_variables(model, images), images


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def shapes(options, num_codes):
    """Shapes of the variables, of the quantized grid and of the reconstruction, without computing anything."""
    model = build_model(options, {"name": "vq", "num_codes": num_codes})

    def run(key, images):
        out, variables = model.init_with_output(key, images)
        return variables, out.quantizer.quantized, out.reconstruction

    variables, quantized, reconstruction = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    return variables, quantized.shape, reconstruction.shape


def convolution(size, inputs, outputs):
    return size * size * inputs * outputs + outputs


def test_the_study_model_has_the_published_number_of_parameters():
    # 6,044,163 with the codebook of 1024 x 256: the model code published with the study.
    variables, quantized, reconstruction = shapes(STUDY, 1024)
    codes = count(variables["codebook"]["quantizer"]["codes"])
    assert count(variables["params"]) + codes == 6_044_163
    assert codes == 1024 * 256
    assert (quantized, reconstruction) == ((2, 8, 8, 256), (2, 32, 32, 3))


def test_the_sonnet_model_has_the_layers_of_its_notebook():
    variables, quantized, reconstruction = shapes(SONNET, 512)
    residual_stack = 2 * (convolution(3, 128, 32) + convolution(1, 32, 128))
    encoder = [convolution(4, 3, 64), convolution(4, 64, 128), convolution(3, 128, 128), convolution(1, 128, 64)]
    decoder = [convolution(3, 64, 128), convolution(4, 128, 64), convolution(4, 64, 3)]
    assert count(variables["params"]["encoder"]) == sum(encoder) + residual_stack
    assert count(variables["params"]["decoder"]) == sum(decoder) + residual_stack
    assert (quantized, reconstruction) == ((2, 8, 8, 64), (2, 32, 32, 3))


@pytest.mark.parametrize("num_scalings", [1, 3])
def test_every_scaling_halves_the_grid(num_scalings):
    _, quantized, reconstruction = shapes(STUDY | {"num_scalings": num_scalings, "latent_dim": 6}, 16)
    assert (quantized, reconstruction) == ((2, 32 >> num_scalings, 32 >> num_scalings, 6), (2, 32, 32, 3))


def test_the_study_encoder_ends_in_a_rectifier_and_its_decoder_in_a_hyperbolic_tangent():
    # Its vectors lie within 90 degrees of each other, which the study's rotations depend on.
    encoder, decoder = ResidualEncoder(width=8, num_residual_blocks=1), ResidualDecoder(width=8, num_residual_blocks=1)
    images = gaussian(4, 8, 8, 3)
    z = encoder.apply(random_variables(encoder, images), images)
    assert jnp.min(z) == 0
    assert jnp.max(z) > 0
    reconstruction = decoder.apply(random_variables(decoder, z), 100 * z)
    assert 0.9 < jnp.max(jnp.abs(reconstruction)) <= 1


def test_a_residual_block_rectifies_after_the_sum_and_a_sonnet_block_before_the_convolution():
    # Biases of -1 and kernels of zero: x - 1 after the sum of the study, x - 1 twice in the stack of sonnet.
    x = jnp.full((1, 2, 2, 4), 1.5)

    def with_zero_kernels(module):
        params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        flat, tree = jax.tree.flatten(params)
        params = jax.tree.unflatten(tree, [jnp.full(p.shape, -1.0 if len(p.shape) == 1 else 0.0) for p in flat])
        return module.apply({"params": params}, x)

    np.testing.assert_array_equal(with_zero_kernels(ResidualBlock()), 0.5)
    np.testing.assert_array_equal(with_zero_kernels(ResidualStack(num_blocks=2, bottleneck=2)), 0.0)
    np.testing.assert_array_equal(with_zero_kernels(ResidualStack(num_blocks=1, bottleneck=2)), 0.5)


@pytest.mark.parametrize("name", ["residual", "sonnet"])
def test_the_methods_agree_with_the_call(name):
    model, variables, images = small(name)
    out = model.apply(variables, images, train=False)
    z = model.apply(variables, images, method="latents")
    indices = model.apply(variables, images, method="encode")
    np.testing.assert_array_equal(indices, out.quantizer.indices)
    quantizer_variables = {"codebook": variables["codebook"]["quantizer"]}
    alone = model.quantizer.apply(quantizer_variables, z, train=False)
    np.testing.assert_array_equal(alone.quantized, out.quantizer.quantized)
    decoded = model.apply(variables, indices, method="decode")
    np.testing.assert_array_equal(decoded, out.reconstruction)
    np.testing.assert_array_equal(model.apply(variables, images, method="reconstruct"), decoded)


@pytest.mark.full
def test_masked_images_take_no_part():
    model, variables, images = small(
        "sonnet", codebook={"name": "ema", "dead_code_threshold": 0.99, "replace": {"below": 0.99}}
    )
    mask = jnp.array([True, False, True, False])

    def loss(params, images):
        arguments = {"train": True, "mutable": ["codebook"], "rngs": {"quantizer": jax.random.key(1)}}
        out, changed = model.apply(variables | {"params": params}, images, mask, **arguments)
        return out.quantizer.loss, (out.quantizer.indices, out.quantizer.loss, changed)

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    expected = gradient(variables["params"], images)
    actual = gradient(variables["params"], images.at[1::2].set(0.5))
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    indices, masked_loss, _ = expected[1]
    np.testing.assert_array_equal(indices[1::2], -1)
    alone = model.apply(variables, images[::2], train=False)
    np.testing.assert_array_equal(indices[::2], alone.quantizer.indices)
    np.testing.assert_allclose(masked_loss, alone.quantizer.loss, rtol=1e-5)


@pytest.mark.full
def test_the_reconstruction_trains_encoder_and_decoder_and_leaves_the_codes_to_their_averages():
    model, variables, images = small("residual", codebook="gradient")

    def loss(params):
        out = model.apply(variables | {"params": params}, images, train=False)
        return jnp.mean((out.reconstruction - images) ** 2)

    gradient = jax.grad(loss)(variables["params"])
    assert all(np.any(g) for g in jax.tree.leaves((gradient["encoder"], gradient["decoder"])))
    assert not np.any(gradient["quantizer"]["codes"])


@pytest.mark.full
def test_any_modules_that_fit_make_an_autoencoder():
    model = VQVAE(nn.Dense(3), VectorQuantizer(num_codes=4), nn.Dense(5))
    out, _ = model.init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, 5)))
    assert out.reconstruction.shape == (1, 2, 2, 5)


def test_the_config_reaches_the_modules():
    quantizer = {"name": "vq", "num_codes": 16, "codebook": {"name": "ema", "decay": 0.5}, "distance": "cosine"}
    model = build_model(STUDY | {"num_scalings": 3}, quantizer)
    assert model.encoder == ResidualEncoder(256, 3, 2, None, "float32")
    assert model.decoder == ResidualDecoder(256, 3, 2, dtype="float32")
    assert model.quantizer == VectorQuantizer(16, codebook=EMACodebook(decay=0.5), distance="cosine")
    model = build_model(SONNET | {"latent_dim": 32}, {"name": "vq", "num_codes": 16})
    assert (model.encoder, model.decoder) == (
        SonnetEncoder(128, 2, 32, "float32"),
        SonnetDecoder(128, 2, dtype="float32"),
    )
    with pytest.raises(UserError, match=r"^config\.quantizer\.codebook\.decay must be"):
        build_model(SONNET, quantizer | {"codebook": {"name": "ema", "decay": 2.0}})


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("make", [residual, sonnet])
def test_sizes_that_are_no_integers_are_rejected(make):
    """Bug: a width of 2.5 passed, and one of True, which is 1."""
    for value in (2.5, True, "8"):
        with pytest.raises(UserError, match=rf"^width must be an integer in \[.*, 8192\], got {value!r}"):
            make(VectorQuantizer(16), width=value)


@pytest.mark.full
@pytest.mark.parametrize("options", [STUDY, SONNET], ids=["study", "sonnet"])
def test_bfloat16_layers_leave_parameters_latents_and_images_in_float32(options):
    options = options | {"width": 8, "num_residual_blocks": 1}
    quantizer = {"name": "vq", "num_codes": 16}
    model, exact = (build_model(options | {"dtype": dtype}, quantizer) for dtype in ("bfloat16", "float32"))
    images = jnp.tanh(gaussian(4, 8, 8, 3))
    variables = random_variables(model, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    latents = model.apply(variables, images, method="latents")
    assert latents.dtype == jnp.float32
    np.testing.assert_allclose(latents, exact.apply(variables, images, method="latents"), rtol=0.1, atol=0.1)
    output = model.apply(variables, images, train=False)
    assert output.reconstruction.dtype == jnp.float32
    decoded = model.apply(variables, output.quantizer.indices, method="decode")
    np.testing.assert_allclose(decoded, output.reconstruction, atol=1e-5)
    # Some layer has to be rounded, or the option does nothing.
    assert not np.array_equal(latents, exact.apply(variables, images, method="latents"))


def test_the_precision_is_that_of_all_layers_and_their_gradients_but_not_of_the_quantizer():
    model, variables, images = small("residual")
    model = model.clone(precision="tensorfloat32")

    def loss(params):
        return jnp.mean(model.apply(variables | {"params": params}, images, train=False).reconstruction ** 2)

    program = jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(convolutions) > 20
    assert all(line.count("<precision HIGH>") == 2 for line in convolutions)
    assert products
    assert all("HIGHEST" in line for line in products)
