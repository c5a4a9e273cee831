"""The multi-scale quantizer: tokens and back, gradients, dropout, masks, one joint update, devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.quantizing import gaussian
from vqjax import UserError, VectorQuantizer
from vqjax.estimators import diveq, rotation
from vqjax.quantizers import EMACodebook, FrozenCodebook, GradientCodebook, LearnedAffine
from vqjax.quantizers.multi_scale import MultiScaleVQ

pytestmark = pytest.mark.full

CODES, DIM, KEY = 16, 4, jax.random.key(3)
SCALES, TOKENS = (1, 2, (4, 3)), 1 + 4 + 12
Z = gaussian(4, 6, 5, DIM)
OPTIONS = [
    {},
    {"shared_codebook": False, "num_phi": None, "gradient": "per_scale"},
    {"scales": (1, 3), "phi_weight": 0.3, "num_phi": 2},
    {"scales": (1, (6, 5)), "phi_weight": None, "quantizer": VectorQuantizer(CODES, distance="cosine")},
    {"scales": (2, 8), "quantizer": VectorQuantizer(CODES, codebook_dim=2), "gradient": "per_scale"},
]


def make(quantizer=None, scales=SCALES, z=Z, **arguments):
    vq = MultiScaleVQ(VectorQuantizer(CODES) if quantizer is None else quantizer, scales, **arguments)
    variables = jax.jit(vq.init)(KEY, z)
    # Neither zero biases nor codes that no token is near.
    return vq, jax.tree.map(lambda x: x + 0.1 * gaussian(*x.shape, seed=1), variables)


@functools.partial(jax.jit, static_argnames="vq")
def evaluate(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask, train=False)


@functools.partial(jax.jit, static_argnames="vq")
def encode(vq, variables, z, mask=None):
    return vq.apply(variables, z, mask, method="encode")


@functools.partial(jax.jit, static_argnames=("vq", "shape"))
def decode(vq, variables, indices, shape=None):
    return vq.apply(variables, indices, shape, method="decode")


@functools.partial(jax.jit, static_argnames="vq")
def train(vq, variables, z, mask=None, key=KEY):
    out, changed = vq.apply(variables, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": key})
    return out, variables | changed


@functools.partial(jax.jit, static_argnames="vq")
def start(vq, variables, z, mask=None):
    _, changed = vq.apply(variables, z, mask, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": KEY})
    return variables | changed


@functools.partial(jax.jit, static_argnames=("vq", "shape"))
def gradients(vq, variables, z, weights, mask=None, shape=(6, 5)):
    """Of the weighted output with respect to input and parameters, and of decode with respect to parameters."""
    of_params = {name: value for name, value in variables.items() if name == "params"}

    def output(z, params):
        out = vq.apply(variables | params, z, mask, train=False)
        return jnp.sum(out.quantized * weights), out

    (of_z, of_params), out = jax.grad(output, argnums=(0, 1), has_aux=True)(z, of_params)

    def decoded(params):
        return jnp.sum(vq.apply(variables | params, out.indices, shape, method="decode") * weights)

    return of_z, of_params, jax.grad(decoded)({"params": variables.get("params", {})}), out


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_indices_give_the_output_back_bit_for_bit(options):
    vq, variables = make(**options)

    @settings(max_examples=5)
    @given(st.integers(0, 2**31 - 1), st.sampled_from([1e-2, 1.0, 30.0]))
    def holds(seed, scale):
        z = scale * gaussian(4, 6, 5, DIM, seed=seed)
        out = evaluate(vq, variables, z)
        indices = encode(vq, variables, z)
        np.testing.assert_array_equal(indices, out.indices)
        np.testing.assert_array_equal(decode(vq, variables, indices, (6, 5)), out.quantized)
        assert out.indices.dtype == jnp.int32

    holds()
    trained, _ = train(vq, variables, Z)
    np.testing.assert_array_equal(trained.quantized, evaluate(vq, variables, Z).quantized)


def test_decode_has_the_same_bits_compiled_and_not():
    vq, variables = make()
    out = evaluate(vq, variables, Z)
    eagerly = vq.apply(variables, out.indices, shape=(6, 5), method="decode")
    np.testing.assert_array_equal(eagerly, out.quantized)


@pytest.mark.parametrize(("spatial_dims", "space"), [(1, (7,)), (3, (4, 3, 2))])
def test_other_numbers_of_axes_and_any_leading_ones(spatial_dims, space):
    z = gaussian(2, 3, *space, DIM)
    vq, variables = make(scales=(1, 2), spatial_dims=spatial_dims, z=z)
    out = evaluate(vq, variables, z)
    assert out.indices.shape == (2, 3, 1 + 2**spatial_dims)
    np.testing.assert_array_equal(decode(vq, variables, out.indices, space), out.quantized)
    alone = evaluate(vq, variables, z[1, 2])
    np.testing.assert_array_equal(alone.indices, out.indices[1, 2])
    np.testing.assert_allclose(alone.quantized, out.quantized[1, 2], atol=1e-6)


def test_tokens_are_one_sequence_and_its_beginning_decodes_coarsely():
    vq, variables = make()
    out = evaluate(vq, variables, Z)
    parts = vq.split(out.indices)
    assert [part.shape for part in parts] == [(4, 1, 1), (4, 2, 2), (4, 4, 3)]
    np.testing.assert_array_equal(jnp.concatenate([part.reshape(4, -1) for part in parts], axis=-1), out.indices)
    coarse, _ = make(scales=SCALES[:2])
    expected = evaluate(coarse, variables, Z)
    np.testing.assert_array_equal(expected.indices, out.indices[:, :5])
    np.testing.assert_array_equal(decode(vq, variables, out.indices[:, :5], (6, 5)), expected.quantized)
    nothing_more = out.indices.at[:, 5:].set(-1)
    np.testing.assert_array_equal(decode(vq, variables, nothing_more, (6, 5)), expected.quantized)
    errors = [float(jnp.mean((decode(vq, variables, out.indices[:, :n], (6, 5)) - Z) ** 2)) for n in (1, 5, TOKENS)]
    assert errors == sorted(errors, reverse=True)


def test_the_map_of_the_first_scales_is_that_of_their_tokens():
    vq, variables = make()
    indices = encode(vq, variables, Z)
    maps = vq.apply(variables, indices, (6, 5), method="decode_scales")
    for count, of_scales in zip((1, 5, TOKENS), maps, strict=True):
        np.testing.assert_array_equal(of_scales, decode(vq, variables, indices[:, :count], (6, 5)))


def test_no_token_is_zero_and_a_wrong_one_shows():
    vq, variables = make()
    indices = jnp.full((4, TOKENS), -1).at[1:].set(3).at[2, 0].set(CODES)
    decoded = decode(vq, variables, indices)
    assert not np.any(decoded[0])
    assert np.all(np.isnan(decoded[2]))
    assert np.all(np.isfinite(decoded[:2]))
    np.testing.assert_array_equal(decode(vq, variables, indices[1:].astype(jnp.uint8))[0], decoded[1])


def test_defect_12_decode_takes_the_size_of_the_input():
    # The peer decodes at the size of the last scale unless told, and its tokens are then another map.
    vq, variables = make()
    indices = encode(vq, variables, Z)
    assert decode(vq, variables, indices).shape == (4, 4, 3, DIM)
    for shape in ((6, 5), 3, (9, 20)):
        expected = (3, 3) if shape == 3 else shape
        assert decode(vq, variables, indices, shape).shape == (4, *expected, DIM)


def test_defect_16_clusters_are_of_the_tokens_of_all_scales():
    # The peer clusters the first scale alone: with scale 1, as many different codes as there are examples.
    vq, variables = make()
    codes = start(vq, variables, Z)["codebook"]["stages_0"]["codes"]
    assert len(np.unique(codes, axis=0)) == CODES > len(Z)
    before, after = (evaluate(vq, v, Z).metrics["quantization_error"] for v in (variables, start(vq, variables, Z)))
    assert float(after) < float(before)


def test_a_codebook_per_scale_starts_from_what_the_clusters_before_leave():
    vq, variables = make(scales=(1, 2), shared_codebook=False, phi_weight=None)
    started = start(vq, variables, jnp.tile(Z, (8, 1, 1, 1)) + 5)["codebook"]
    means = [np.abs(np.mean(started[f"stages_{i}"]["codes"])) for i in range(2)]
    assert means[0] > 4
    assert means[1] < 1


def test_the_estimator_crosses_once_and_convolutions_have_the_gradient_of_the_reconstruction():
    weights = gaussian(*Z.shape, seed=2)
    vq, variables = make(VectorQuantizer(CODES, estimator="rotation"))
    of_z, of_params, expected, out = gradients(vq, variables, Z, weights)
    pull = jax.vjp(lambda z: rotation(z, out.quantized), Z)[1]
    np.testing.assert_allclose(of_z, pull(weights)[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(of_params, expected, rtol=1e-5)
    assert all(np.all(x != 0) for x in jax.tree.leaves(of_params))


@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3, 4, 5)])
def test_the_encoder_gradient_does_not_grow_with_the_scales(scales):
    template = VectorQuantizer(CODES, estimator="straight_through")
    vq, variables = make(template, scales)
    np.testing.assert_array_equal(gradients(vq, variables, Z, jnp.ones_like(Z))[0], jnp.ones_like(Z))


def test_learned_codes_learn_by_their_loss_and_by_synchronization():
    template = VectorQuantizer(CODES, codebook=GradientCodebook(sync_nu=0.5, transform=LearnedAffine()))
    vq, variables = make(template)
    _, of_params, expected, out = gradients(vq, variables, Z, gaussian(*Z.shape, seed=2))
    codes, plain = (tree["params"]["stages_0"]["codes"] for tree in (of_params, expected))
    np.testing.assert_allclose(codes, 0.5 * plain, rtol=1e-4, atol=1e-6)
    by_loss = jax.jit(jax.grad(lambda v: vq.apply(variables | {"params": v}, Z, train=False).loss))(variables["params"])
    assert all(np.any(x) for x in jax.tree.leaves(by_loss["stages_0"]))
    np.testing.assert_array_equal(decode(vq, variables, out.indices, (6, 5)), out.quantized)


def test_an_estimator_that_draws_noise_draws_it_in_training_only():
    vq, variables = make(VectorQuantizer(CODES, estimator=functools.partial(diveq, variance=1.0)))
    first, again = (train(vq, variables, Z, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert float(jnp.max(jnp.abs(first.quantized - again.quantized))) > 1e-3
    np.testing.assert_array_equal(first.indices, again.indices)
    assert evaluate(vq, variables, Z).quantized.shape == Z.shape


def test_the_loss_is_the_mean_of_the_scales():
    vq, variables = make()
    out = evaluate(vq, variables, Z)
    errors = [out.metrics[f"quantization_error_{i}"] for i in range(3)]
    np.testing.assert_allclose(out.loss, 0.25 * np.mean(errors), rtol=1e-6)
    error = jnp.mean((Z - out.quantized) ** 2)
    np.testing.assert_allclose(out.metrics["quantization_error"], error, rtol=1e-5)


def test_a_shared_codebook_is_updated_once_with_the_tokens_of_all_scales():
    decay = 0.8
    vq, variables = make(VectorQuantizer(CODES, codebook=EMACodebook(decay=decay)))
    out, after = train(vq, variables, Z)
    counts = np.bincount(np.asarray(out.indices).ravel(), minlength=CODES)
    before, state = (v["codebook"]["stages_0"] for v in (variables, after))
    np.testing.assert_allclose(state["counts"], decay * before["counts"] + (1 - decay) * counts, rtol=1e-5)
    share = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(out.metrics["perplexity"], np.exp(-np.sum(share * np.log(share))), rtol=1e-5)
    assert float(out.metrics["usage"]) == np.mean(counts > 0)


def test_codebooks_per_scale_are_updated_with_the_tokens_of_their_scale():
    template = VectorQuantizer(CODES, codebook=EMACodebook(decay=0.8))
    vq, variables = make(template, shared_codebook=False)
    out, after = train(vq, variables, Z)
    for number, part in enumerate(vq.split(out.indices)):
        counts = np.bincount(np.asarray(part).ravel(), minlength=CODES)
        before, state = (v["codebook"][f"stages_{number}"] for v in (variables, after))
        np.testing.assert_allclose(state["counts"], 0.8 * before["counts"] + 0.2 * counts, rtol=1e-5)


def test_each_scale_has_a_transform_of_its_own():
    template = VectorQuantizer(CODES, codebook=FrozenCodebook(transform=LearnedAffine()))
    _, variables = make(template, shared_codebook=False)
    assert {f"stages_{i}" for i in range(3)} < set(variables["params"])


def test_dropout_keeps_the_first_scales_of_each_example():
    vq, variables = make(dropout=0.8, dropout_min_scales=1)
    depths = set()
    for seed in range(4):
        out, after = train(vq, variables, Z, key=jax.random.key(seed))
        for example, tokens in enumerate(np.asarray(out.indices)):
            kept = [bool(np.all(part != -1)) for part in np.split(tokens, [1, 5])]
            assert kept == sorted(kept, reverse=True)
            depths.add(sum(kept))
            end = (1, 5, 17)[sum(kept) - 1]
            np.testing.assert_array_equal(tokens[:end], encode(vq, variables, Z)[example, :end])
        np.testing.assert_array_equal(out.quantized, decode(vq, variables, out.indices, (6, 5)))
        kept = np.asarray(out.indices)[np.asarray(out.indices) >= 0]
        before, state = (v["codebook"]["stages_0"]["counts"] for v in (variables, after))
        np.testing.assert_allclose(jnp.sum(state), 0.99 * jnp.sum(before) + 0.01 * kept.size, rtol=1e-5)
    assert depths == {1, 2, 3}
    np.testing.assert_array_equal(evaluate(vq, variables, Z).indices, encode(vq, variables, Z))


def mask_of(z):
    return (gaussian(*z.shape[:-1], seed=4) > -0.3).at[0].set(False).at[1, :3].set(False)


@pytest.mark.parametrize("gradient", ["total", "per_scale"])
def test_masked_positions_have_no_influence_and_no_gradient(gradient):
    vq, variables = make(gradient=gradient)
    mask = mask_of(Z)
    filled = [jnp.where(mask[..., None], Z, value) for value in (0.0, jnp.nan)]
    expected, out = (evaluate(vq, variables, z, mask) for z in filled)
    chex.assert_trees_all_equal(out, expected)
    assert not np.any(out.quantized[~mask])
    of_z, of_params, _, _ = gradients(vq, variables, filled[1], jnp.ones_like(Z), mask)
    assert not np.any(of_z[~mask])
    assert np.all(np.isfinite(of_z))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(of_params))
    assert np.all(out.indices[0] == -1)
    assert np.all(vq.split(out.indices)[1][1, 0] == -1)
    decoded = decode(vq, variables, out.indices, (6, 5))
    np.testing.assert_array_equal(decoded[mask], out.quantized[mask])
    if gradient == "total":
        others = evaluate(vq, variables, Z[1:], mask[1:])
        np.testing.assert_allclose(out.loss, others.loss, rtol=1e-5)
        np.testing.assert_array_equal(out.indices[1:], others.indices)
    trained, after = train(vq, variables, filled[1], mask)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((trained, after)))
    everything = evaluate(vq, variables, Z, jnp.ones(Z.shape[:-1], bool))
    chex.assert_trees_all_close(everything, evaluate(vq, variables, Z), rtol=1e-5, atol=1e-6)


def test_a_padded_map_has_the_token_of_the_map():
    vq, variables = make(scales=(1,), phi_weight=None)
    padded = jnp.pad(Z[:, :4], ((0, 0), (0, 2), (0, 0), (0, 0)), constant_values=9.0)
    mask = jnp.broadcast_to((jnp.arange(6) < 4)[None, :, None], (4, 6, 5))
    out, expected = evaluate(vq, variables, padded, mask), evaluate(vq, variables, Z[:, :4])
    np.testing.assert_array_equal(out.indices, expected.indices)
    np.testing.assert_array_equal(out.quantized[:, :4], expected.quantized)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-5)


def test_a_training_step_in_bfloat16_keeps_the_state_in_float32():
    vq, variables = make()
    out, after = train(vq, variables, Z.astype(jnp.bfloat16))
    assert out.quantized.dtype == jnp.bfloat16
    assert out.loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_evaluation_changes_nothing_and_draws_nothing():
    vq, variables = make(dropout=0.5)
    _, changed = vq.apply(variables, Z, train=False, mutable=["codebook"])
    chex.assert_trees_all_equal(changed["codebook"], variables["codebook"])
    with pytest.raises(UserError, match=r"dropout=0\.5 draws random numbers"):
        vq.apply(variables, Z, train=True, mutable=["codebook"])
    with pytest.raises(UserError, match="immutable in this call to apply"):
        vq.apply(variables, Z, train=True, rngs={"quantizer": KEY})


@pytest.mark.parametrize("mapped", [False, True])
def test_eight_devices_train_as_one(mapped):
    z = gaussian(8, 6, 5, DIM)
    # Some devices hold nothing.
    mask = (gaussian(8, 6, 5, seed=4) > -0.3).at[0].set(False)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    vq, variables = make(z=z)
    expected = step(vq, variables, z, mask)
    if mapped:
        vq = MultiScaleVQ(VectorQuantizer(CODES, axis_name="data"), SCALES)
        program = lambda *a: step(vq, *a, average=lambda x: jax.lax.pmean(x, "data"))  # noqa: E731
        specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": (P(), P("data"))}
        actual = jax.jit(jax.shard_map(program, mesh=mesh, **specs))(variables, z, mask)
    else:
        z, mask = (jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (z, mask))
        variables = jax.device_put(variables, NamedSharding(mesh, P()))
        actual = step(vq, variables, z, mask)
    np.testing.assert_array_equal(actual[1]["indices"], expected[1]["indices"])
    chex.assert_trees_all_close(actual, expected, atol=1e-5, rtol=1e-4)


@functools.partial(jax.jit, static_argnames=("vq", "average"))
def step(vq, variables, z, mask, average=lambda x: x):
    def loss(params, z):
        out, changed = vq.apply(variables | params, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": KEY})
        return average(out.loss + jnp.mean(out.quantized**2)), (out, changed["codebook"])

    params = {"params": variables["params"]}
    (value, (out, state)), (of_params, of_z) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    whole = {"loss": value, "metrics": average(out.metrics), "state": state, "gradient": of_params}
    return whole, {"indices": out.indices, "gradient": of_z}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "scales must be at least one scale"),
        ({"scales": (2, 1)}, "scales must be from coarse to fine"),
        ({"scales": (1, (2, 2, 2))}, "or 2 of them, one per axis of space"),
        ({"spatial_dims": 4}, r"spatial_dims must be an integer in \[1, 3\], got 4"),
        ({"phi_weight": 1.5}, r"phi_weight must be a number in \(0, 1\]"),
        ({"num_phi": 4}, r"num_phi must be an integer in \[1, 3\], got 4"),
        ({"gradient": "per_stage"}, "gradient must be one of 'total', 'per_scale', got 'per_stage'"),
        ({"dropout": 2.0}, "dropout must be a probability"),
        ({"dropout_min_scales": 4}, r"dropout_min_scales must be an integer in \[1, 3\], got 4"),
        ({"quantizer": VectorQuantizer(CODES, heads=2)}, "a token of a scale has one index"),
        ({"quantizer": VectorQuantizer(CODES, codebook_dim=2)}, "or use gradient='per_scale'"),
        ({"quantizer": VectorQuantizer(CODES, estimator="gumbel_softmax")}, "use shared_codebook=False"),
        ({"quantizer": VectorQuantizer(CODES, estimator="dynamic_straight_through")}, "or use gradient='per_scale'"),
    ],
)
def test_mistakes_are_refused_where_they_are_made(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        MultiScaleVQ(**({"quantizer": VectorQuantizer(CODES), "scales": SCALES} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    vq, variables = make()
    with pytest.raises(UserError, match="z must be a map with 2 axes of space"):
        vq.apply(variables, gaussian(5, DIM), train=False)
    with pytest.raises(UserError, match=r"indices must end with a scale, after one of \(1, 5, 17\) tokens"):
        vq.apply(variables, jnp.zeros((2, 6), int), method="decode")
    with pytest.raises(UserError, match="shape must be a positive integer, or 2 of them"):
        vq.apply(variables, jnp.zeros((2, 5), int), 0, method="decode")
    with pytest.raises(UserError, match="indices must be an array of integers"):
        vq.apply(variables, jnp.zeros((2, 5)), method="decode")
