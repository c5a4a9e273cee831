"""The quantizer's contract: lookup, output and state."""

import chex
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
    nearest,
    replacing,
    train,
    unit,
)
from vqjax import EMACodebook, Replacement, UserError, VectorQuantizer
from vqjax.quantizers.codebooks import CODEBOOKS


def test_the_contract():
    z = gaussian(2, 3, DIM)
    vq = VectorQuantizer(num_codes=CODES)
    variables = jax.jit(vq.init)({"params": jax.random.key(0), "quantizer": jax.random.key(1)}, z)
    out, changed = vq.apply(variables, z, train=True, mutable=["codebook"], rngs={"quantizer": jax.random.key(2)})
    chex.assert_shape([out.quantized, out.indices, out.loss], [(2, 3, DIM), (2, 3), ()])
    chex.assert_type([out.quantized, out.indices, out.loss], [jnp.float32, jnp.int32, jnp.float32])
    assert sorted(out.metrics) == [
        "angle",
        "codebook_loss",
        "commitment_loss",
        "dead_codes",
        "norm_ratio",
        "perplexity",
        "quantization_error",
        "relative_error",
        "rms_codes",
        "rms_latents",
        "usage",
    ]
    assert {(x.shape, x.dtype) for x in out.metrics.values()} == {((), np.dtype("float32"))}
    assert list(changed) == ["codebook"]
    indices = vq.apply(variables, z, method="encode")
    np.testing.assert_array_equal(indices, nearest(z, variables["codebook"]["codes"]))
    np.testing.assert_array_equal(vq.apply(variables, indices, method="decode"), out.quantized)


def test_the_optimizer_sees_no_state():
    assert "params" not in create()[1]
    assert list(create(codebook="gradient")[1]["params"]) == ["codes"]


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
@codebooks
@distances
def test_decoding_the_encoding_gives_the_output(distance, codebook, masked, dtype, shape):
    z = gaussian(*shape, DIM).astype(dtype)
    vq, variables = create(distance=distance, codebook=codebook)
    mask = every_second(shape) if masked else None
    out = vq.apply(variables, z, mask, train=False)
    assert out.quantized.dtype == dtype
    indices = vq.apply(variables, z, mask, method="encode")
    np.testing.assert_array_equal(indices, out.indices)
    decoded = vq.apply(variables, indices, method="decode")
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(decoded.astype(dtype), out.quantized)


@distances
@codebooks
def test_the_codes_are_the_nearest_by_the_distance(distance, codebook):
    vq, variables = create(distance=distance, codebook=codebook)
    z, codes = gaussian(20, DIM), codes_of(vq, variables)
    if distance == "cosine":
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-6)
        expected = np.argmax(unit(z) @ unit(codes).T, axis=1)
    else:
        expected = nearest(z, codes)
    np.testing.assert_array_equal(vq.apply(variables, z, method="encode"), expected)


@pytest.mark.parametrize("dim", [1, 64])
def test_initial_codes_have_length_one_on_average(dim):
    # uniform(-1/K, 1/K) made the first encoder gradients 0.0086 times too small, through the rotation's |q|/|z|.
    variables = VectorQuantizer(num_codes=500).init(KEY, jnp.zeros((1, dim)))
    assert 0.9 < float(jnp.mean(jnp.sum(variables["codebook"]["codes"] ** 2, axis=1))) < 1.1


@codebooks
@distances
def test_evaluation_changes_nothing_even_where_it_could(codebook, distance):
    vq, variables = create(distance=distance, codebook=codebook)
    z = gaussian(2, 3, DIM, seed=1)
    out, changed = vq.apply(variables, z, train=False, mutable=["codebook"])
    chex.assert_trees_all_equal(variables | changed, variables)
    chex.assert_trees_all_equal(vq.apply(variables, z, train=False), out)


@pytest.mark.parametrize("replace", [None, Replacement(0.99)])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_lookup_uses_the_codebook_before_the_update(codebook, replace):
    vq, variables = create(codebook=CODEBOOKS[codebook](replace=replace))
    z = gaussian(2, 3, DIM, seed=1)
    out, changed = train(vq, variables, z)
    before = vq.apply(variables, z, train=False)
    chex.assert_trees_all_equal((out.quantized, out.indices), (before.quantized, before.indices))
    np.testing.assert_allclose(out.loss, before.loss, rtol=1e-6)
    if "codebook" in variables:
        assert not np.array_equal(changed["codebook"]["relative_usage"], variables["codebook"]["relative_usage"])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_training_with_an_immutable_codebook_says_what_to_write(codebook):
    # Flax alone would keep the old codebook in silence.
    vq, variables = create(codebook=replacing(codebook))
    message = r"train=True updates the collection 'codebook', which is immutable(.|\n)*mutable=\['codebook'\]\)\n"
    with pytest.raises(UserError, match=message):
        vq.apply(variables, gaussian(2, 3, DIM), train=True)
    with pytest.raises(UserError, match=r"kmeans_init\(z\) updates the collection 'codebook', which is immutable"):
        vq.apply(variables, gaussian(2, 3, DIM), method="kmeans_init", rngs={"quantizer": KEY})


def test_a_frozen_codebook_trains_without_state():
    vq, variables = create(codebook="frozen")
    assert list(variables) == ["codebook"]
    assert list(variables["codebook"]) == ["codes"]
    z = gaussian(2, 3, DIM)
    out = vq.apply(variables, z, train=True)
    assert "dead_codes" not in out.metrics
    gradient = jax.grad(lambda v: vq.apply(v, z, train=True).loss)(variables)
    assert not np.any(gradient["codebook"]["codes"])
    np.testing.assert_array_equal(train(vq, variables, z)[1]["codebook"]["codes"], variables["codebook"]["codes"])


@distances
def test_ema_follows_a_numpy_loop(distance):
    vq, variables = create(distance=distance, codebook=EMACodebook(decay=0.7))
    codes = np.asarray(variables["codebook"]["codes"], np.float64)
    counts, sums, usage = np.zeros(CODES), np.zeros((CODES, DIM)), np.ones(CODES)
    for step in range(4):
        z = gaussian(20, DIM, seed=step)
        out, variables = train(vq, variables, z)
        tokens = np.asarray(z, np.float64).reshape(-1, DIM)
        tokens = unit(tokens) if distance == "cosine" else tokens
        one_hot = np.eye(CODES)[nearest(tokens, codes)]
        counts = 0.7 * counts + 0.3 * one_hot.sum(0)
        sums = 0.7 * sums + 0.3 * one_hot.T @ tokens
        usage = 0.7 * usage + 0.3 * one_hot.mean(0) * CODES
        used = one_hot.any(0)
        codes[used] = unit(sums[used]) if distance == "cosine" else sums[used] / counts[used, None]
        expected = {"codes": codes, "counts": counts, "sums": sums, "relative_usage": usage}
        chex.assert_trees_all_close(variables["codebook"], {k: np.float32(v) for k, v in expected.items()}, atol=1e-5)
        assert out.metrics["dead_codes"] == np.sum(usage < 0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@distances
def test_state_loss_and_metrics_stay_float32_for_short_inputs(dtype, distance):
    # At decay 0.99 a bfloat16 moving average ignores every change below 20 percent.
    vq, variables = create(distance=distance, codebook=replacing())
    z = gaussian(2, 3, DIM, seed=1)
    out, changed = train(vq, variables, z.astype(dtype))
    chex.assert_trees_all_equal_dtypes(changed, variables)
    assert {x.dtype for x in jax.tree.leaves((out.loss, out.metrics, changed))} == {np.dtype("float32")}
    expected, expected_state = train(vq, variables, z.astype(dtype).astype(jnp.float32))
    # Two programs, whose sums and products may be fused differently.
    chex.assert_trees_all_close((out.loss, changed), (expected.loss, expected_state), rtol=1e-6, atol=1e-7)
