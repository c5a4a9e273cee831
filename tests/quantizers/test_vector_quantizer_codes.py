"""Codes that are set rather than learned: k-means and dead-code replacement."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import (
    CODES,
    DIM,
    KEY,
    codebooks,
    codes_of,
    create,
    distances,
    every_second,
    gaussian,
    replacing,
    train,
)
from vqjax import EMACodebook, UserError, VectorQuantizer
from vqjax.functional.codebook import sample_latents
from vqjax.functional.kmeans import kmeans


class FirstKey(nn.Module):
    """Returns the key of the stream `quantizer` that a module draws first."""

    @nn.compact
    def __call__(self):
        return self.make_rng("quantizer")


def first_key():
    return FirstKey().apply({}, rngs={"quantizer": KEY})


def half_nan(*shape):
    mask = every_second(shape)
    return jnp.where(mask[..., None], gaussian(*shape, DIM, seed=1), jnp.nan), mask


def lookup_tokens(z, distance):
    tokens = z.reshape(-1, DIM)
    return tokens / jnp.linalg.norm(tokens, axis=1, keepdims=True) if distance == "cosine" else tokens


@codebooks
@distances
def test_kmeans_init_sets_the_codes_that_kmeans_finds(distance, codebook):
    vq, variables = create(distance=distance, codebook=codebook)
    z, mask = half_nan(20)
    mutable = [vq.codebook.clusters_in]
    result, changed = vq.apply(
        variables, z, mask, iterations=3, method="kmeans_init", mutable=mutable, rngs={"quantizer": KEY}
    )
    assert result is None
    chex.assert_trees_all_equal_shapes_and_dtypes(variables | changed, variables)
    tokens = lookup_tokens(z, distance)
    expected = kmeans(first_key(), tokens, CODES, iterations=3, unit_norm=distance == "cosine", mask=mask.reshape(-1))
    np.testing.assert_allclose(codes_of(vq, variables | changed), expected.codes, atol=1e-6)
    if codebook == "ema":
        np.testing.assert_allclose(changed["codebook"]["counts"], expected.counts)
        np.testing.assert_allclose(changed["codebook"]["sums"], expected.sums, atol=1e-6)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@distances
def test_dead_codes_become_tokens_of_the_batch(distance, codebook):
    learning = replacing(codebook, below=0.5, decay=0.9)
    vq, variables = create(distance=distance, codebook=learning)
    relative_usage = jnp.linspace(0, 1.5, CODES)
    variables = variables | {"codebook": variables["codebook"] | {"relative_usage": relative_usage}}
    z, mask = half_nan(20)
    _, kept = train(vq.clone(codebook=dataclasses.replace(learning, replace=None)), variables, z, mask)
    out, changed = train(vq, variables, z, mask)
    dead = np.asarray(kept["codebook"]["relative_usage"]) < 0.5
    assert out.metrics["dead_codes"] == np.sum(dead)
    assert 0 < np.sum(dead) < CODES
    drawn = sample_latents(first_key(), lookup_tokens(z, distance), CODES, mask.reshape(-1))
    expected = np.where(dead[:, None], drawn, codes_of(vq, kept))
    np.testing.assert_allclose(codes_of(vq, changed), expected, atol=1e-6)
    assert set(np.asarray(changed["codebook"]["relative_usage"])[dead].tolist()) == {1.0}
    if codebook == "ema":
        assert not np.any(changed["codebook"]["counts"][dead])
        assert not np.any(changed["codebook"]["sums"][dead])
    else:
        np.testing.assert_array_equal(changed["codebook"]["offsets"][~dead], 0)
        np.testing.assert_array_equal(changed["params"]["codes"], variables["params"]["codes"])


def test_a_replaced_code_goes_on_learning_from_where_it_was_put():
    vq, variables = create(codebook=replacing("gradient", below=0.9))
    variables = variables | {"codebook": variables["codebook"] | {"relative_usage": jnp.zeros(CODES)}}
    _, variables = train(vq, variables, gaussian(20, DIM))
    before = codes_of(vq, variables)
    variables["params"] = {"codes": variables["params"]["codes"] + 0.25}
    np.testing.assert_allclose(codes_of(vq, variables), before + 0.25, atol=1e-6)
    # The next batch, in which no code is dead, leaves the offsets alone.
    _, later = train(vq, variables, gaussian(20, DIM))
    np.testing.assert_array_equal(later["codebook"]["offsets"], variables["codebook"]["offsets"])


def test_zero_tokens_do_not_become_cosine_codes():
    # A zero code is nearer than any unit code whose angle to the token exceeds 60 degrees: it took most tokens.
    vq, variables = create(distance="cosine", codebook=replacing(below=0.9))
    variables = variables | {"codebook": variables["codebook"] | {"relative_usage": jnp.zeros(CODES)}}
    z = gaussian(20, DIM).at[3:].set(0.0)
    _, replaced = train(vq, variables, z)
    np.testing.assert_allclose(np.linalg.norm(replaced["codebook"]["codes"], axis=1), 1, rtol=1e-6)
    _, started = vq.apply(variables, z, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": KEY})
    np.testing.assert_allclose(np.linalg.norm(started["codebook"]["codes"], axis=1), 1, rtol=1e-6)


def test_the_threshold_does_not_depend_on_the_batch_size():
    vq, variables = create(codebook=EMACodebook(dead_code_threshold=0.9, decay=0.5))
    z = gaussian(20, DIM)
    small, large = train(vq, variables, z)[0], train(vq, variables, jnp.tile(z, (4, 1)))[0]
    assert small.metrics["dead_codes"] == large.metrics["dead_codes"] > 0


def test_random_numbers_come_from_the_stream_alone():
    vq, variables = create(codebook=replacing(below=0.9))
    variables = variables | {"codebook": variables["codebook"] | {"relative_usage": jnp.zeros(CODES)}}
    z = gaussian(20, DIM)
    first, same, other = (train(vq, variables, z, key=jax.random.key(seed))[1] for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, same)
    assert not np.array_equal(first["codebook"]["codes"], other["codebook"]["codes"])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32])
@pytest.mark.parametrize("num_codes", [255, 256, 257, 300])
def test_decode_takes_every_integer_dtype(dtype, num_codes):
    """Bug: uint8 indices, as token files hold them, were compared with 256 and -1 in uint8."""
    vq = VectorQuantizer(num_codes=num_codes)
    variables = jax.jit(vq.init)(KEY, gaussian(1, DIM))
    indices = jnp.arange(min(num_codes, int(jnp.iinfo(dtype).max) + 1)).astype(dtype)
    np.testing.assert_array_equal(
        vq.apply(variables, indices, method="decode"), variables["codebook"]["codes"][: len(indices)]
    )


def test_no_tokens_leave_the_codebook_as_it_is_and_cannot_start_it():
    vq, variables = create(codebook=replacing())
    _, changed = train(vq, variables, gaussian(0, DIM))
    chex.assert_trees_all_equal(changed, variables)
    with pytest.raises(UserError, match="must have at least one token for kmeans_init, got shape"):
        vq.apply(variables, gaussian(0, DIM), method="kmeans_init", mutable=["codebook"], rngs={"quantizer": KEY})


@pytest.mark.full
def test_the_state_is_float32_under_64_bit_defaults():
    """Bug: with jax_enable_x64 the moving averages became float64."""
    with jax.enable_x64(True):
        vq = VectorQuantizer(num_codes=CODES)
        z = jnp.asarray(np.random.default_rng(0).normal(size=(6, DIM)))
        variables = jax.jit(vq.init)(KEY, z)
        _, changed = train(vq, variables, z)
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}
