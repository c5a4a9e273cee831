"""Every quantizer fits into the autoencoder and the trainer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.errors import UserError
from vqjax.evaluation import load_tokens
from vqjax.models import VQVAE
from vqjax.quantizers import QUANTIZERS, build, defaults
from vqjax.quantizers.recipes import RECIPES
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

IMAGES = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3), minval=-1.0)


def recipe(name):
    """A recipe for a latent grid of 4 x 4."""
    return dict(RECIPES[name]) | ({"scales": (1, 2, 4)} if name == "multi_scale_vq" else {})


def test_every_quantizer_has_a_recipe_of_about_8_bits():
    assert {config["name"] for config in RECIPES.values()} == QUANTIZERS.keys()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_defaults_build_what_the_class_builds(name):
    """Every argument of a config has the value that the constructor gives it."""
    given = next(config for config in RECIPES.values() if config["name"] == name)
    required = {field: given[field] for field, default in defaults(name).items() if default is None}
    required = {field: value for field, value in required.items() if value is not None}
    parts = {field: build(**value) if hasattr(value, "items") else value for field, value in required.items()}
    assert build(**defaults(name, **required)) == QUANTIZERS[name](**parts)


def test_an_unknown_quantizer_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"^name='fsk' is unknown; did you mean 'fs[qp]'\?$"):
        defaults("fsk")


# Nothing here depends on how well the compiled code is optimized, which takes half of the time of compiling it.
@functools.partial(jax.jit, static_argnames="model", compiler_options={"xla_backend_optimization_level": 0})
def passes(model, variables, images, key):
    """One with training, and images from the tokens and without them."""
    params = variables.pop("params")

    def loss(params):
        collections = list(variables)
        arguments = {"train": True, "mutable": collections, "rngs": {"quantizer": key}}
        output, updated = model.apply({"params": params} | variables, images, **arguments)
        error = jnp.mean(jnp.square(output.reconstruction - images))
        return error + output.quantizer.loss, (output.quantizer.metrics, updated)

    gradient, (metrics, updated) = jax.grad(loss, has_aux=True)(params)
    trained = {"params": params} | updated
    direct = model.apply(trained, images, train=False).reconstruction
    indices = model.apply(trained, images, method="encode")
    return gradient, metrics, indices, direct, model.apply(trained, indices, method="decode")


@pytest.mark.parametrize("name", RECIPES)
def test_every_quantizer_trains_and_gives_images_from_its_tokens(name):
    # Convolutions would take most of the time to compile.
    model = VQVAE(nn.Dense(8 if name == "binary_mapper" else 4), build(**recipe(name)), nn.Dense(3))
    variables = jax.jit(model.init)({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, IMAGES)
    gradient, metrics, indices, direct, decoded = passes(model, variables, IMAGES, jax.random.key(3))
    for leaf in jax.tree.leaves((gradient, metrics)):
        assert np.all(np.isfinite(leaf))
    of_encoder = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradient["encoder"]))
    # Labels of random projections are there to be predicted: nothing learns to make others.
    assert (of_encoder > 0) == (name != "random_projection")
    assert {"perplexity", "usage"} <= metrics.keys()
    assert indices.dtype == jnp.int32
    assert 0 <= indices.min() <= indices.max() < model.quantizer.num_codes
    np.testing.assert_allclose(decoded, direct, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("name", ["residual_vq", "multi_scale_vq"])
def test_tokens_of_a_trained_run_give_its_reconstructions(name, config, tmp_path):
    config.quantizer = recipe(name)
    config.task.kmeans_init = name == "residual_vq"
    config.num_steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    train(config, tmp_path, devices=jax.devices()[:1])
    result = evaluate_workdir(tmp_path, export_tokens=tmp_path / "tokens.npz")
    tokens = load_tokens(tmp_path / "tokens.npz")
    assert result.metrics["tokens_per_image"] == np.prod(tokens.indices.shape[1:])
    assert (0.5 if config.task.kmeans_init else 0) < result.metrics["usage_split"] <= 1
    assert tokens.context["quantizer"] == name
    decoded = load_tokenizer(tmp_path).decode(tokens.indices[:4])
    pixels = np.round(np.clip((np.asarray(decoded) + 1) / 2, 0, 1) * 255)
    np.testing.assert_allclose(pixels, result.collected["reconstruction"][:4], atol=1)
