"""The bridge of FVQ: its definition in float64, how training leaves a start with all codes at zero, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers.arrays import gaussian
from vqjax import FrozenCodebook, GradientCodebook, ProductVQ, UserError, VectorQuantizer, VQBridge

KEY = jax.random.key(0)
BRIDGE = VQBridge(patch_size=2, depth=2, heads=2, width=8)
SHALLOW = VQBridge(patch_size=2, depth=1, heads=2, width=8)


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def attended(x, layer):
    query, key, value = (
        np.einsum("pf,fhc->hpc", x, layer[name]["kernel"]) + layer[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
    heads = scores / scores.sum(-1, keepdims=True) @ value
    return np.einsum("hpc,hcf->pf", heads, layer["out"]["kernel"]) + layer["out"]["bias"]


def transcription(params, codes, columns, size):
    """The bridge by loops over an image with this number of columns."""
    image = np.asarray(codes, np.float64).reshape(-1, columns, codes.shape[-1])
    corners = [(r, c) for r in range(0, image.shape[0], size) for c in range(0, columns, size)]
    x = np.stack([image[r : r + size, c : c + size].ravel() for r, c in corners])
    x = linear(x, params["to_tokens"])
    for i in range(2):
        block = params[f"block_{i}"]
        x = x + attended(normalized(x), block["attention"])
        hidden = linear(normalized(x), block["mlp_1"])
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, block["mlp_2"])
    patches, result = linear(normalized(x), params["to_codes"]), np.zeros_like(image)
    for (r, c), patch in zip(corners, patches, strict=True):
        result[r : r + size, c : c + size] = patch.reshape(size, size, -1)
    return result.reshape(codes.shape)


@functools.cache
def moved_off_zero(num_codes):
    """Parameters whose last layer is not zero any more."""
    codes = gaussian(num_codes, 3, seed=1)
    params = jax.jit(BRIDGE.init)(KEY, codes)["params"]
    return codes, jax.tree.map(lambda x: x + 0.3 * gaussian(*x.shape, seed=2), params)


@pytest.mark.full
@pytest.mark.parametrize(("num_codes", "columns"), [(16, 4), (32, 8), (20, 10)])
def test_it_is_its_definition_on_the_image_with_the_closest_sides(num_codes, columns):
    codes, params = moved_off_zero(num_codes)
    expected = transcription(jax.tree.map(lambda x: np.asarray(x, np.float64), params), codes, columns, 2)
    np.testing.assert_allclose(BRIDGE.apply({"params": params}, codes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_codebooks_of_heads_pass_one_by_one():
    codes, params = moved_off_zero(16)
    vq = ProductVQ(16, heads=2, codebook=GradientCodebook(transform=BRIDGE))
    both = {"params": {"codes": jnp.stack([codes, -codes]), "codebook_transform": params}}
    expected = [BRIDGE.apply({"params": params}, one) for one in (codes, -codes)]
    np.testing.assert_allclose(vq.apply(both, method="code_vectors"), expected, rtol=1e-5, atol=1e-6)


def trained(vq, offset, steps=100):
    """Codes used by many latents after a training of a linear autoencoder, and all codes."""
    x, k = jax.random.normal(KEY, (steps, 128, 8)), jax.random.split(KEY, 2)
    encoder = {"in": jax.random.normal(k[0], (8, 4)) / 3, "out": jax.random.normal(k[1], (4, 8)) / 2}
    variables = vq.init({"params": KEY, "quantizer": KEY}, jnp.zeros((1, 4)))
    optimizer = optax.adam(3e-3)

    def loss(params, x, key):
        model = variables | {"params": params["vq"]}
        out = vq.apply(model, x @ params["in"] + offset, train=True, rngs={"quantizer": key}, mutable=["codebook"])[0]
        return jnp.mean((out.quantized @ params["out"] - x) ** 2) + out.loss

    def step(state, batch):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, *batch), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = encoder | {"vq": variables["params"]}
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (x, jax.random.split(KEY, steps)))
    model = variables | {"params": params["vq"]}
    used = vq.apply(model, x[:64].reshape(-1, 8) @ params["in"] + offset, method="encode")
    return used, vq.apply(model, method="code_vectors")


@pytest.mark.full
@pytest.mark.parametrize(
    ("codebook", "estimator"),
    [
        (GradientCodebook, "rotation"),
        *(
            pytest.param(codebook, name, marks=pytest.mark.full)
            for codebook, name in [
                (GradientCodebook, "straight_through"),
                (FrozenCodebook, "straight_through"),
                (GradientCodebook, "diveq"),
                (GradientCodebook, "dynamic_straight_through"),
                (GradientCodebook, "tangential_rotation"),
            ]
        ),
    ],
)
def test_training_brings_all_codes_into_use_although_all_are_zero_at_first(codebook, estimator):
    vq = VectorQuantizer(64, codebook=codebook(transform=SHALLOW), estimator=estimator)
    variables = jax.jit(vq.init)({"params": KEY, "quantizer": KEY}, jnp.zeros((1, 4)))
    np.testing.assert_array_equal(vq.apply(variables, method="code_vectors"), 0.0)
    used, codes = jax.jit(trained, static_argnums=0)(vq, 0.0)
    assert np.all(np.isfinite(codes))
    assert len(np.unique(used)) > 0.9 * 64


@pytest.mark.full
def test_places_that_no_latent_chooses_stay_zero():
    # What the docstring warns of: far from the origin all latents stay with the place that moved first.
    vq = VectorQuantizer(64, codebook=GradientCodebook(transform=SHALLOW), estimator="straight_through")
    used, codes = jax.jit(trained, static_argnums=0)(vq, 5.0)
    assert len(np.unique(used)) <= 64 // 2**2
    assert np.sum(np.all(np.asarray(codes) == 0, axis=-1)) == 64 - 64 // 2**2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BRIDGE.init(KEY, jnp.zeros((18, 4))),
            "patch_size must be a number whose square divides num_codes=18, got 2; use 1 or 3, or a num_codes that is "
            "a multiple of 4",
        ),
        (lambda: VQBridge(patch_size=0), "patch_size must be a positive integer, got 0"),
        (lambda: VQBridge(heads=3), "heads must be a divisor of width=256, got 3"),
        (
            lambda: VectorQuantizer(16, distance="cosine", codebook=GradientCodebook(transform=BRIDGE)),
            "distance must be 'euclidean' with VQBridge, got 'cosine'; all its codes are zero at first",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
