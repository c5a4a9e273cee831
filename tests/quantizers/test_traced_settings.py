"""The numbers of a quantizer may be traced: each is then the same as if it were written down."""

import dataclasses
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
from helpers.quantizing import KEY, gaussian, replacing
from vqjax import FSQ, LFQ, EMACodebook, GradientCodebook, Residual, UserError, VectorQuantizer
from vqjax.estimators import clip_norm_ratio, diveq, gumbel_softmax
from vqjax.functional.regularizers import Diversity, EntropyLoss, Orthogonality, Region
from vqjax.quantizers import LearnedAffine, RunningAffine, build, replace_settings, weightings
from vqjax.quantizers.recipes import RECIPES

RNGS = {"params": KEY, "quantizer": KEY}
LEARNED = GradientCodebook(weight=0.5, sync_nu=0.2, transform=LearnedAffine(2.0))
QUANTIZERS = {
    name: build(**dict(config) | ({"scales": (1, 2)} if name == "multi_scale_vq" else {}))
    for name, config in RECIPES.items()
} | {
    "learned": VectorQuantizer(
        4, codebook=LEARNED, regularizers=(Orthogonality(0.1), Diversity(0.2), EntropyLoss(0.1), Region(0.3))
    ),
    "running": VectorQuantizer(4, codebook=EMACodebook(smoothing=1e-5, transform=RunningAffine())),
    "replaced": VectorQuantizer(4, codebook=replacing(below=0.9), sampling_temperature=0.5),
    "noise": FSQ((4, 4), bound="symmetric", noise_dropout=0.5),
    "dropout": Residual(VectorQuantizer(4), 2, dropout=0.5, soft_clamp=3.0),
    "clamped": LFQ(4, soft_clamp=2.0, smallest_probability=1e-5),
}


def numbers(part, prefix=""):
    """All settings that are floats, by dotted name."""
    if isinstance(part, tuple):
        return {
            k: v for item in part if hasattr(item, "name") for k, v in numbers(item, f"{prefix}{item.name}.").items()
        }
    found = {}
    for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
        value = getattr(part, field.name)
        if isinstance(value, float):
            found[prefix + field.name] = value
        elif field.name not in ("parent", "name"):
            found |= numbers(value, f"{prefix}{field.name}.")
    return found


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_number_may_be_traced(name):
    quantizer, z = QUANTIZERS[name], gaussian(3, 4, 4, 8 if name == "binary_mapper" else 4)
    variables, settings = jax.jit(quantizer.init)(RNGS, z), numbers(quantizer)

    def train(settings):
        changed = replace_settings(quantizer, settings)
        arguments = {"train": True, "mutable": ["codebook"], "rngs": RNGS}
        return jax.value_and_grad(
            lambda z: (lambda out: (out[0].loss, out))(changed.apply(variables, z, **arguments)), has_aux=True
        )(z)

    chex.assert_trees_all_close(jax.jit(train)(settings), jax.jit(lambda: train({}))(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: VectorQuantizer(4, estimator=clip_norm_ratio("rotation", x)),
        lambda x: VectorQuantizer(4, codebook="gradient", estimator=partial(gumbel_softmax, temperature=x)),
        lambda x: VectorQuantizer(4, codebook="gradient", estimator=partial(diveq, variance=x)),
        lambda x: VectorQuantizer(4, **weightings.vqtorch(x)),
    ],
)
def test_numbers_of_estimators_and_weightings_may_be_traced(make):
    z = gaussian(20, 4)
    variables = make(0.5).init(RNGS, z)
    loss = lambda x: make(x).apply(variables, z, train=True, mutable=["codebook"], rngs=RNGS)[0].loss  # noqa: E731
    np.testing.assert_allclose(jax.jit(loss)(0.5), loss(0.5), rtol=1e-5)


def test_known_arrays_are_checked(as_users_run_it):
    assert VectorQuantizer(4, commitment_weight=jnp.float32(0.5)).commitment_weight == 0.5
    with pytest.raises(UserError, match=r"commitment_weight must be .*, got Array\(-1\., dtype=float32\)"):
        VectorQuantizer(4, commitment_weight=jnp.float32(-1))
    with pytest.raises(UserError, match="commitment_weight must be a finite number of at least 0"):
        jax.jit(lambda x: VectorQuantizer(4, commitment_weight=x).commitment_weight)(jnp.ones(2))
    with pytest.raises(UserError, match="heads must be a positive integer, got JitTracer"):
        jax.jit(lambda x: VectorQuantizer(4, heads=x).heads)(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"comitment_weight": 1.0},
            "comitment_weight is not a field of VectorQuantizer; did you mean 'commitment_weight'?",
        ),
        ({"codebook.decai": 1.0}, "decai is not a field of EMACodebook; did you mean 'decay'?"),
        ({"codebook.decay.x": 1.0}, "x is not a field of float; leave it out"),
        ({"regularizers.entropy.weight": 1.0}, r"entropy.weight must name a field of one of \['diversity'\]"),
        ({"commitment_weight": -1.0}, "commitment_weight must be a finite number of at least 0, got -1.0"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        replace_settings(VectorQuantizer(4, regularizers=(Diversity(0.1),)), settings)


class Annealed(nn.Module):
    @nn.compact
    def __call__(self, z, weight, train):
        return VectorQuantizer(4, commitment_weight=weight, name="vq")(z, train=train).loss


def test_calls_may_be_annealed():
    z = gaussian(20, 4)
    variables = Annealed().init(RNGS, z, 0.25, False)
    loss = jax.jit(lambda weight: Annealed().apply(variables, z, weight, train=False))
    np.testing.assert_allclose(loss(0.5), 2 * loss(0.25), rtol=1e-6)
    quantizer = vqjax.nnx.Quantizer(
        VectorQuantizer(4), dim=4, rngs=nnx.Rngs(0), variables={"codebook": variables["codebook"]["vq"]}
    )
    call = nnx.jit(lambda quantizer, weight: quantizer(z, train=False, settings={"commitment_weight": weight}).loss)
    np.testing.assert_allclose(call(quantizer, 0.5), loss(0.5), rtol=1e-6)
