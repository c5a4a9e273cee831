"""Every quantizer fits into the autoencoder and the trainer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.evaluation import load_tokens
from vqjax.models import VQVAE
from vqjax.quantizers.registry import FAMILIES, build_quantizer
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train
from vqjax.training.quantizer_presets import use_preset

IMAGES = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3), minval=-1.0)


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
    direct = model.apply(trained, images).reconstruction
    indices = model.apply(trained, images, method="encode")
    return gradient, metrics, indices, direct, model.apply(trained, indices, method="decode")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_quantizer_trains_and_gives_images_from_its_tokens(name, config):
    use_preset(config, name)
    # Convolutions would take most of the time to compile.
    model = VQVAE(nn.Dense(config.model.code_dim), build_quantizer(config.quantizer), nn.Dense(3))
    variables = model.init({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, IMAGES)
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


@pytest.mark.parametrize("name", ["residual_vq", "multi_scale_vq"])
def test_tokens_of_a_trained_run_give_its_reconstructions(name, config, tmp_path):
    use_preset(config, name)
    config.quantizer.kmeans_init = name == "residual_vq"
    config.num_steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    train(config, tmp_path, devices=jax.devices()[:1])
    result = evaluate_workdir(tmp_path, export_tokens=tmp_path / "tokens.npz")
    tokens = load_tokens(tmp_path / "tokens.npz")
    assert result.metrics["tokens_per_image"] == np.prod(tokens.indices.shape[1:])
    assert (0.5 if config.quantizer.kmeans_init else 0) < result.metrics["usage_split"] <= 1
    assert tokens.context["quantizer"] == name
    decoded = load_tokenizer(tmp_path).decode(tokens.indices[:4])
    pixels = np.round(np.clip((np.asarray(decoded) + 1) / 2, 0, 1) * 255)
    np.testing.assert_allclose(pixels, result.reconstructions[:4], atol=1)
