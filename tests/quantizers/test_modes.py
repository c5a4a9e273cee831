"""The argument `train`, of the call or of the constructor, is required exactly if it changes anything."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import vqjax.nnx
from helpers.quantizing import KEY, gaussian
from vqjax import FSQ, Grouped, MultiScaleVQ, Residual, UserError, VectorQuantizer
from vqjax.models import VQVAE
from vqjax.quantizers import build
from vqjax.quantizers.recipes import RECIPES

pytestmark = pytest.mark.full

STAGE = VectorQuantizer(4, codebook="frozen")
QUANTIZERS = {
    name: build(**dict(config) | ({"scales": (1, 2)} if name == "multi_scale_vq" else {}))
    for name, config in RECIPES.items()
} | {
    "frozen": STAGE,
    "learned": VectorQuantizer(4, codebook="gradient"),
    "sampling": VectorQuantizer(4, codebook="frozen", sampling_temperature=1.0),
    "noisy estimator": VectorQuantizer(4, codebook="frozen", estimator="noise_substitution"),
    "noise": FSQ((4, 4), bound="symmetric", noise_dropout=0.9),
    "dropout": Residual(STAGE, 2, dropout=1.0),
    "beam": Residual(STAGE, 2, beam_size=2),
    "beam in evaluation": Residual(STAGE, 2, beam_size_eval=4),
    "scales": MultiScaleVQ(STAGE, scales=(1, 2)),
    "dropped scales": Grouped(Residual(STAGE, 3, dropout=1.0), 2),
}
RNGS = {"params": KEY, "quantizer": KEY}


def tokens(name):
    return gaussian(3, 4, 4, 8 if name == "binary_mapper" else 4)


@functools.partial(jax.jit, static_argnames=("quantizer", "train"))
def call(quantizer, variables, z, train=None):
    return quantizer.apply(variables, z, mutable=["codebook"], rngs=RNGS, **({} if train is None else {"train": train}))


def differ(x, y):
    (leaves, structure), (others, other_structure) = jax.tree.flatten(x), jax.tree.flatten(y)
    return structure != other_structure or any(np.any(a != b) for a, b in zip(leaves, others, strict=True))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_train_is_asked_for_exactly_where_it_changes_anything(name):
    quantizer, z = QUANTIZERS[name], tokens(name)
    variables = jax.jit(quantizer.init)(RNGS, z)
    jax.jit(lambda v, z: quantizer.apply(v, quantizer.apply(v, z, method="encode"), method="decode"))(variables, z)
    trained, evaluated = (call(quantizer, variables, z, train=train) for train in (True, False))
    wrapped = vqjax.nnx.Quantizer(quantizer, dim=z.shape[-1], rngs=nnx.Rngs(0), variables=variables)
    if differ(trained, evaluated):
        for forgets in (lambda: call(quantizer, variables, z), lambda: wrapped(z)):
            with pytest.raises(
                UserError, match=rf"train must be True or False for {type(quantizer).__name__}, got None"
            ):
                forgets()
    else:
        assert not differ(call(quantizer, variables, z), evaluated)


@pytest.mark.parametrize("train", [True, False])
def test_the_constructor_may_say_it(train):
    in_call, z = Residual(VectorQuantizer(4), 2, dropout=1.0), tokens("vq")
    at_construction = in_call.clone(train=train)
    variables = at_construction.init(RNGS, z)
    expected = call(in_call, variables, z, train=train)
    assert not differ(call(at_construction, variables, z), expected)
    indices = at_construction.apply(variables, z, method="encode")
    np.testing.assert_array_equal(indices, in_call.apply(variables, z, method="encode"))
    with pytest.raises(UserError, match=f"train must be given once, got {train} at construction and True in the call"):
        call(at_construction, variables, z, train=True)
    wrapped = vqjax.nnx.Quantizer(at_construction, dim=4, rngs=nnx.Rngs(0), variables=variables)
    before = nnx.to_pure_dict(nnx.state(wrapped, vqjax.nnx.CodebookState))
    wrapped(z)
    assert differ(nnx.to_pure_dict(nnx.state(wrapped, vqjax.nnx.CodebookState)), before) == train


@pytest.mark.parametrize(
    "compose",
    [lambda vq: Residual(vq, 2), lambda vq: Grouped(vq, 2), lambda vq: MultiScaleVQ(vq, scales=(1, 2))],
)
def test_parts_get_it_from_the_whole(compose):
    with pytest.raises(UserError, match=r"quantizer\.train must be None, got False; pass train to \w+\(...\) or"):
        compose(VectorQuantizer(4, train=False))


def test_a_traced_mode_is_refused(as_users_run_it):
    vq, z = VectorQuantizer(4), tokens("vq")
    variables = vq.init(RNGS, z)
    with pytest.raises(UserError, match=r"train must be True or False .*static argument"):
        jax.jit(lambda train: vq.apply(variables, z, train=train))(True)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(images))


@pytest.mark.parametrize(
    ("encoder", "quantizer"), [(nn.Dense(4), VectorQuantizer(4)), (Normalized(), FSQ((4, 4, 4, 4)))]
)
def test_an_autoencoder_asks_where_its_parts_do(encoder, quantizer):
    model, images = VQVAE(encoder, quantizer, nn.Dense(3)), gaussian(2, 4, 4, 3)
    variables = model.init(RNGS, images)
    assert model.apply(variables, images, method="reconstruct").shape == images.shape
    with pytest.raises(UserError, match="train must be True or False"):
        model.apply(variables, images)
    assert model.apply(variables, images, train=False).reconstruction.shape == images.shape
    plain = VQVAE(nn.Dense(4), FSQ((4, 4, 4, 4)), nn.Dense(3))
    assert plain.apply(plain.init(RNGS, images), images).reconstruction.shape == images.shape
