"""Evaluation needs neither the mapped axis of training nor its state."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import CODES, DIM, KEY, create, gaussian, replacing
from vqjax import BSQ, EMACodebook, GradientCodebook, Residual, UserError, VectorQuantizer
from vqjax.quantizers import RunningAffine, build
from vqjax.quantizers.recipes import RECIPES

RNGS = {"params": KEY, "quantizer": KEY}
QUANTIZERS = {
    name: build(**dict(config) | ({"scales": (1, 2)} if name == "multi_scale_vq" else {}))
    for name, config in RECIPES.items()
} | {
    "replaced": VectorQuantizer(4, codebook=replacing("gradient")),
    "accumulated": VectorQuantizer(4, codebook=EMACodebook(accumulation_steps=2)),
    "running": VectorQuantizer(4, codebook=GradientCodebook(transform=RunningAffine())),
    "shared": Residual(VectorQuantizer(4), 2, shared_codebook=True),
}
STATE = {"counts", "sums", "relative_usage", "idle", "batches", "pending_counts", "pending_sums", "pending_batches"}


def over_axis(quantizer):
    """The quantizer over a mapped axis, which composites take from their template."""
    if "axis_name" in {field.name for field in dataclasses.fields(quantizer)}:
        return quantizer.clone(axis_name="devices")
    return quantizer.clone(quantizer=over_axis(quantizer.quantizer))


def codes_alone(tree):
    """The variables without the state of training."""
    if not hasattr(tree, "items"):
        return tree
    kept = {name: codes_alone(value) for name, value in tree.items() if name not in STATE}
    return {name: value for name, value in kept.items() if not hasattr(value, "items") or value}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_neither_axis_nor_state_of_training_is_needed(name):
    alone, mapped = QUANTIZERS[name], over_axis(QUANTIZERS[name])
    z = gaussian(3, 4, 4, 8 if name == "binary_mapper" else 4)
    variables = jax.jit(mapped.init)(RNGS, z)

    def evaluate(quantizer, variables):
        out = quantizer.apply(variables, z, train=False)
        indices = quantizer.apply(variables, z, method="encode")
        metrics = {name: value for name, value in out.metrics.items() if not name.startswith("dead_codes")}
        return out.replace(metrics=metrics), indices, quantizer.apply(variables, indices, method="decode")

    actual, expected = jax.jit(lambda v: (evaluate(mapped, codes_alone(v)), evaluate(alone, v)))(variables)
    chex.assert_trees_all_equal(actual, expected)
    with pytest.raises(UserError, match=r"axis_name must be the axis of a mapped function .*, got 'devices'; train"):
        mapped.apply(variables, z, train=True, mutable=["codebook"], rngs=RNGS)


def test_codes_that_only_a_gradient_moves_are_parameters_alone():
    vq, variables = create(codebook="gradient")
    z = gaussian(60, DIM)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"codes": (CODES, DIM)}}
    out = vq.apply(variables, z, train=True)
    np.testing.assert_array_equal(out.indices, vq.apply(variables, z).indices)
    with pytest.raises(UserError, match=r"kmeans_init\(z\) updates the collection 'params', which is immutable"):
        vq.apply(variables, z, method="kmeans_init", mutable=["codebook"], rngs=RNGS)
    _, started = vq.apply(variables, z, method="kmeans_init", mutable=["params"], rngs=RNGS)
    before, after = (vq.apply(v, z).metrics["quantization_error"] for v in (variables, started))
    assert after < 0.5 * before


def test_training_still_needs_its_state():
    vq, variables = create()
    with pytest.raises(UserError, match="must hold the codebook's counts and sums and relative_usage, got none"):
        vq.apply(codes_alone(variables), gaussian(2, DIM), train=True, mutable=["codebook"])


@pytest.mark.full
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_batch_without_tokens_has_no_codes_and_no_loss(name):
    """Bug: reshaping to an inferred size raised ZeroDivisionError in three quantizers."""
    quantizer, z = QUANTIZERS[name], gaussian(2, 2, 2, 8 if name == "binary_mapper" else 4)
    variables = jax.jit(quantizer.init)(RNGS, z)
    expected = quantizer.apply(variables, z, train=False)
    trained, _ = quantizer.apply(variables, z[:0], train=True, mutable=["codebook"], rngs=RNGS)
    evaluated = quantizer.apply(variables, z[:0], train=False)
    indices = quantizer.apply(variables, z[:0], method="encode")
    for out in (trained, evaluated):
        assert out.quantized.shape == (0, *expected.quantized.shape[1:])
        assert out.loss == 0
    assert indices.shape == (0, *expected.indices.shape[1:])


@pytest.mark.full
@pytest.mark.parametrize("quantizer", [VectorQuantizer(4, distance="cosine"), BSQ(4, commitment_weight=0.25)])
def test_nan_in_a_latent_stays_visible(quantizer):
    """Bug: a latent of NaN counted as one that is too short for a direction, and got a code like any other."""
    z = gaussian(4, 4)
    variables = jax.jit(quantizer.init)(RNGS, z)
    out, _ = quantizer.apply(variables, z.at[0, 0].set(jnp.nan), train=True, mutable=["codebook"], rngs=RNGS)
    assert np.isnan(out.loss)
