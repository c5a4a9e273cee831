"""Features of Flax that quantizers support: metadata boxes, lifted transforms, shared scopes, mapped variables."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import vqjax.nnx
from helpers.quantizing import CODES, DIM, KEY, gaussian, replacing
from vqjax import IBQ, EMACodebook, GradientCodebook, Replacement, Residual, SimVQ, VectorQuantizer
from vqjax.quantizers import LearnedAffine, RunningAffine

pytestmark = pytest.mark.full

Z = gaussian(20, DIM)
RNGS = {"params": KEY, "quantizer": KEY}
INIT = nn.initializers.normal(1.0)
QUANTIZERS = {
    "ema": lambda init: VectorQuantizer(CODES, codebook_init=init),
    "least recently used": lambda init: VectorQuantizer(
        CODES, codebook=EMACodebook(replace=Replacement(None, 1)), codebook_init=init
    ),
    "accumulated": lambda init: VectorQuantizer(CODES, codebook=EMACodebook(accumulation_steps=2), codebook_init=init),
    "separate": lambda init: VectorQuantizer(CODES, heads=2, separate_codebooks=True, codebook_init=init),
    "learned": lambda init: VectorQuantizer(CODES, codebook="gradient", codebook_init=init),
    "learned, replaced": lambda init: VectorQuantizer(CODES, codebook=replacing("gradient", 0.9), codebook_init=init),
    "learned affine": lambda init: VectorQuantizer(
        CODES, codebook=GradientCodebook(transform=LearnedAffine()), codebook_init=init
    ),
    "running affine": lambda init: VectorQuantizer(
        CODES, codebook=EMACodebook(transform=RunningAffine()), codebook_init=init
    ),
    "frozen": lambda init: SimVQ(CODES, codebook_init=init),
    "ibq": lambda init: IBQ(CODES, codebook_init=init),
    "residual": lambda init: Residual(VectorQuantizer(CODES, codebook_init=init), 2),
}


@functools.partial(jax.jit, static_argnames="quantizer")
def step(quantizer, variables, z):
    """The output and the gradient of a training step, and the variables after it."""

    def loss(params):
        out, updates = quantizer.apply(variables | params, z, train=True, mutable=["codebook"], rngs=RNGS)
        return out.loss + jnp.sum(out.quantized**2), (out, updates)

    params = {name: tree for name, tree in variables.items() if name == "params"}
    gradient, (out, updates) = jax.grad(loss, has_aux=True)(params)
    return out, gradient, variables | updates


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("box", [nn.with_partitioning, nn.with_logical_partitioning])
def test_names_of_axes_stay_with_the_variables_through_training(name, box):
    plain, boxed = QUANTIZERS[name](INIT), QUANTIZERS[name](box(INIT, ("codes", None)))
    variables = boxed.init(RNGS, Z)
    expected = plain.init(RNGS, Z)
    chex.assert_trees_all_equal(nn.unbox(variables), expected)
    named = {
        tuple(key.key for key in path)[-1]: spec
        for path, spec in jax.tree.leaves_with_path(
            nn.get_partition_spec(variables), is_leaf=lambda x: x is None or isinstance(x, P)
        )
    }
    lead = (None,) if name == "separate" else ()
    assert named["codes"] == P(*lead, "codes", None)
    for of_codes in named.keys() & {"counts", "relative_usage", "idle", "pending_counts"}:
        assert named[of_codes] == P(*lead, "codes"), of_codes
    for of_codes in named.keys() & {"sums", "offsets", "pending_sums"}:
        assert named[of_codes] == P(*lead, "codes", None), of_codes
    out, gradient, after = step(boxed, variables, Z)
    chex.assert_trees_all_equal((out, nn.unbox(gradient), nn.unbox(after)), step(plain, expected, Z))
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    indices = boxed.apply(variables, Z, method="encode")
    decoded = boxed.apply(variables, indices, method="decode")
    np.testing.assert_array_equal(decoded, plain.apply(expected, indices, method="decode"))


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_nnx_modules_keep_the_names_of_axes(codebook):
    vq = VectorQuantizer(CODES, codebook=codebook, codebook_init=nn.with_partitioning(INIT, ("codes", None)))
    quantizer = vqjax.nnx.Quantizer(vq, dim=DIM, rngs=nnx.Rngs(0))
    quantizer(Z, train=True)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(quantizer)))["variables"]
    assert specs["params" if codebook == "gradient" else "codebook"]["codes"] == P("codes", None)
    if codebook == "ema":
        assert specs["codebook"]["counts"] == P("codes")
    given = VectorQuantizer(CODES, codebook=codebook).init(RNGS, Z)
    quantizer = vqjax.nnx.Quantizer(vq, dim=DIM, rngs=nnx.Rngs(0), variables=given)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(quantizer))["variables"], given)
    # Flax places variables with named axes at once, which takes a mesh.
    with jax.set_mesh(jax.make_mesh((2,), ("codes",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])):
        placed = vqjax.nnx.Quantizer(vq, dim=DIM, rngs=nnx.Rngs(0))
        bridged = nnx.bridge.ToNNX(vq, rngs=nnx.Rngs(params=0, quantizer=1)).lazy_init(Z)
        codes = placed.variables["params" if codebook == "gradient" else "codebook"]["codes"]
        assert codes.sharding.spec == bridged.codes.sharding.spec == P("codes", None)
        before = np.asarray(bridged.codes[...])
        out = bridged(Z, train=True, mutable=["codebook"])
        assert np.any(bridged.codes[...] != before) == (codebook == "ema")
        assert placed(Z, train=True).indices.shape == out.indices.shape


class Scoped(nn.Module):
    """A model that is its quantizer, as far as names of variables go."""

    def setup(self):
        self.vq = Residual(VectorQuantizer(CODES), 2)
        nn.share_scope(self, self.vq)

    def __call__(self, z, train=None):
        return self.vq(z, train=train)


def test_a_scope_can_be_shared():
    alone = Residual(VectorQuantizer(CODES), 2)
    variables = Scoped().init(RNGS, Z)
    chex.assert_trees_all_equal_shapes(variables, alone.init(RNGS, Z))
    chex.assert_trees_all_equal(step(Scoped(), variables, Z), step(alone, variables, Z))


@pytest.mark.parametrize(("collection", "codebook"), [("codebook", "ema"), ("params", "gradient")])
def test_variables_can_be_mapped(collection, codebook):
    halve, double = (functools.partial(jax.tree.map, lambda x, factor=factor: x * factor) for factor in (0.5, 2.0))
    alone = VectorQuantizer(CODES, codebook=codebook)
    map_codebook = functools.partial(nn.map_variables, VectorQuantizer, collection, halve, double)
    variables = alone.init(RNGS, Z)
    chex.assert_trees_all_equal_shapes(map_codebook(init=True)(CODES, codebook=codebook).init(RNGS, Z), variables)
    mapped = map_codebook(mutable=True)(CODES, codebook=codebook)
    doubled = variables | {collection: double(variables[collection])}
    out, _, after = step(alone, variables, Z)
    mapped_out, _, mapped_after = step(mapped, doubled, Z)
    chex.assert_trees_all_close(mapped_out, out, rtol=1e-6)
    chex.assert_trees_all_close(mapped_after, variables | {collection: double(after[collection])}, rtol=1e-6)


def test_lifted_transforms_name_the_axes_that_they_add(as_users_run_it):
    names = nn.with_partitioning(INIT, ("codes", None))
    lifted = {"variable_axes": {"codebook": 0}, "split_rngs": {"params": True, "quantizer": True}}
    many = nn.vmap(VectorQuantizer, in_axes=0, axis_size=2, metadata_params={nn.PARTITION_NAME: "layers"}, **lifted)
    quantizer, z = many(CODES, codebook_init=names, train=True), gaussian(2, 20, DIM)
    variables = quantizer.init(RNGS, z)
    specs = nn.get_partition_spec(variables)["codebook"]
    assert (specs["codes"], specs["counts"]) == (P("layers", "codes", None), P("layers", "codes"))
    out, after = quantizer.apply(variables, z, mutable=["codebook"])
    alone = VectorQuantizer(CODES)
    for i in range(2):
        own = jax.tree.map(lambda x, i=i: x[i], nn.unbox(variables))
        own_out, _, own_after = step(alone, own, z[i])
        np.testing.assert_array_equal(out.indices[i], own_out.indices)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], nn.unbox(after)), own_after, atol=1e-6)


@pytest.mark.parametrize("lift", [nn.jit, nn.remat])
def test_lifted_compilation_and_rematerialization_change_nothing(lift):
    names = nn.with_partitioning(INIT, ("codes", None))
    alone, lifted = (
        VectorQuantizer(CODES, codebook_init=names),
        lift(VectorQuantizer)(CODES, codebook_init=names, train=True),
    )
    variables = lifted.init(RNGS, Z)
    out, after = lifted.apply(variables, Z, mutable=["codebook"], rngs=RNGS)
    expected, _, expected_after = step(alone, variables, Z)
    chex.assert_trees_all_close((out, {**after}), (expected, expected_after), rtol=1e-6, atol=1e-6)
