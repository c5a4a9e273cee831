"""Residual and Grouped over every quantizer, and ProductVQ: properties of every combination, and peers' defects."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vqjax import (
    BSQ,
    FSP,
    FSQ,
    IBQ,
    LFQ,
    BinaryMapper,
    EMACodebook,
    GradientCodebook,
    Grouped,
    ImplicitCodebook,
    LatentQuantizer,
    ProductVQ,
    RandomProjectionQuantizer,
    Replacement,
    Residual,
    ResidualVQ,
    SimVQ,
    UserError,
    VectorQuantizer,
)
from vqjax.functional.beam_search import beam_search
from vqjax.quantizers.residual import draw_depths

KEY = jax.random.key(0)
Z = jax.random.normal(jax.random.key(1), (8, 6, 4))
MASK = jax.random.bernoulli(jax.random.key(2), 0.7, (8, 6))

STAGE = VectorQuantizer(num_codes=8)
LEARNED = VectorQuantizer(num_codes=8, codebook="gradient")
REPLACED = VectorQuantizer(8, codebook=EMACodebook(dead_code_threshold=0.5, replace=Replacement(below=0.5)))
OPTIONS = {
    "default": ResidualVQ(STAGE, 3),
    "straight_through": ResidualVQ(STAGE.clone(estimator="straight_through"), 3),
    "per_stage": ResidualVQ(STAGE, 3, gradient="per_stage"),
    "shared": ResidualVQ(STAGE, 3, shared_codebook=True),
    "sizes": ResidualVQ(STAGE, 3, stage_sizes=(8, 4, 2)),
    "dropout": ResidualVQ(STAGE, 3, dropout=1.0),
    "beam": ResidualVQ(STAGE, 3, beam_size=4),
    "beam_dropout_shared": ResidualVQ(STAGE, 3, beam_size=4, dropout=0.5, shared_codebook=True),
    "projected": ResidualVQ(STAGE, 3, codebook_dim=3),
    "cosine": ResidualVQ(STAGE.clone(distance="cosine"), 3),
    "learned": ResidualVQ(LEARNED.clone(codebook=GradientCodebook(sync_nu=0.5)), 3),
    "diveq": ResidualVQ(LEARNED.clone(estimator="diveq"), 3),
    "stage_projections": ResidualVQ(LEARNED.clone(codebook_dim=2, distance="cosine"), 3, gradient="per_stage"),
    "implicit": ResidualVQ(LEARNED, 3, implicit_codebooks=ImplicitCodebook(hidden=8)),
    "implicit_beam": ResidualVQ(LEARNED, 3, implicit_codebooks=ImplicitCodebook(hidden=8), beam_size=3),
    "replaced": ResidualVQ(REPLACED, 3),
    "replaced_shared": ResidualVQ(REPLACED, 3, shared_codebook=True),
    "heads": ResidualVQ(STAGE.clone(heads=2), 3, dropout=0.5, shared_codebook=True),
    "simvq": Residual(SimVQ(8), 3),
    "latent": Residual(LatentQuantizer((3, 4)), 2),
    "bsq": Residual(BSQ(4), 2, dropout=0.5),
    "fsp": Residual(FSP((3, 3, 4, 4), invert=True, quantize_rate=1.0), 2),
    "ibq": Residual(IBQ(8), 2, gradient="per_stage"),
    "grouped": Grouped(ResidualVQ(STAGE, 2), 2),
    "grouped_dropout": Grouped(ResidualVQ(STAGE, 3, dropout=1.0), 2),
    "grouped_stages": Residual(Grouped(LEARNED.clone(estimator="diveq"), 2), 3),
    "grouped_fsq": Grouped(Residual(FSQ((5, 4)), 2), 2),
    "groups_of_groups": Grouped(Grouped(STAGE, 2), 2),
    "product": ProductVQ(num_codes=8, heads=2),
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def assert_alike(first, second, **tolerances):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


@cache
def variables_of(name):
    return jax.jit(OPTIONS[name].init)({"params": KEY, "quantizer": KEY}, Z)


@cache
def trained(name):
    """A training step of the masked batch: output, and variables after it."""
    module = OPTIONS[name]

    @jax.jit
    def step(variables, z, mask, key):
        return module.apply(variables, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": key})

    return step


@cache
def evaluated(name):
    module = OPTIONS[name]

    @jax.jit
    def run(variables, z, mask):
        out = module.apply(variables, z, mask, train=False)
        indices = module.apply(variables, z, mask, method="encode")
        return out, indices, module.apply(variables, indices, method="decode")

    return run


@every_option
def test_decode_of_encode_is_quantized(name):
    _, updates = trained(name)(variables_of(name), Z, MASK, KEY)
    variables = {**variables_of(name), **updates}
    out, indices, decoded = evaluated(name)(variables, Z, MASK)
    np.testing.assert_array_equal(indices, out.indices)
    np.testing.assert_array_equal(decoded, out.quantized)
    assert np.isfinite(out.loss)
    assert np.all(np.asarray(out.quantized)[~np.asarray(MASK)] == 0)
    assert np.all(np.asarray(out.indices)[~np.asarray(MASK)] == -1)


@every_option
def test_masked_tokens_change_nothing(name):
    changed = jnp.where(MASK[..., None], Z, 100.0)
    variables = variables_of(name)
    first, second = (trained(name)(variables, z, MASK, KEY) for z in (Z, changed))
    assert_alike(first, second, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("name", ["default", "beam", "grouped"])
def test_any_leading_axes_give_the_same(name):
    module, variables = OPTIONS[name], variables_of(name)
    out, indices, _ = evaluated(name)(variables, Z, jnp.ones_like(MASK))
    flat = jax.jit(lambda z: module.apply(variables, z, train=False))(Z.reshape(-1, 4))
    np.testing.assert_array_equal(flat.quantized.reshape(Z.shape), out.quantized)
    np.testing.assert_array_equal(module.apply(variables, Z[0, 0], method="encode"), indices[0, 0])


def test_evaluation_changes_nothing():
    _, updates = OPTIONS["default"].apply(variables_of("default"), Z, train=False, mutable=["codebook"])
    assert_alike(updates["codebook"], variables_of("default")["codebook"], rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("name", OPTIONS)
def test_one_device_and_eight_are_alike(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(Z, jax.NamedSharding(mesh, jax.P("data")))
    mask = jax.device_put(MASK, jax.NamedSharding(mesh, jax.P("data")))
    one, eight = (trained(name)(variables_of(name), z, m, KEY) for z, m in ((Z, MASK), (sharded, mask)))
    np.testing.assert_array_equal(one[0].indices, eight[0].indices)
    assert_alike(one, eight, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["default", "shared", "grouped"])
def test_bfloat16_gives_bfloat16_and_float32_state(name):
    out, updates = OPTIONS[name].apply(
        variables_of(name), Z.astype(jnp.bfloat16), train=True, mutable=["codebook"], rngs={"quantizer": KEY}
    )
    assert out.quantized.dtype == jnp.bfloat16
    assert out.loss.dtype == jnp.float32
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(updates))


@pytest.mark.full
@pytest.mark.parametrize("stages", [1, 4, 8])
def test_the_gradient_is_routed_once_and_per_stage_is_its_multiple(stages):
    stage = VectorQuantizer(num_codes=8, estimator="straight_through")
    for form, factor in (("total", 1.0), ("per_stage", float(stages))):
        module = ResidualVQ(stage, stages, gradient=form)
        variables = jax.jit(module.init)(KEY, Z)
        gradient = jax.grad(lambda z, m=module, v=variables: jnp.sum(m.apply(v, z, train=False).quantized))(Z)
        np.testing.assert_allclose(gradient, factor, rtol=1e-6)


@pytest.mark.full
def test_the_loss_of_each_stage_pulls_the_encoder():
    variables = variables_of("default")
    gradient = jax.grad(lambda z: OPTIONS["default"].apply(variables, z, train=False).loss)(Z)
    residual, expected = Z, jnp.zeros_like(Z)
    for number in range(3):
        codes = variables["codebook"][f"stages_{number}"]["codes"]
        nearest = jnp.argmin(jnp.sum(jnp.square(residual[..., None, :] - codes[None, None]), -1), -1)
        residual = residual - codes[nearest]
        expected += 0.25 * 2 * residual / Z.size
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_decay_of_a_shared_codebook_does_not_depend_on_the_number_of_stages():
    """vector-quantize-pytorch updates once per stage: a decay of 0.99 acts as 0.99 ** stages."""
    module = ResidualVQ(VectorQuantizer(num_codes=8, codebook=EMACodebook(decay=0.9)), 4, shared_codebook=True)
    variables = jax.jit(module.init)(KEY, Z)
    out, updates = module.apply(variables, Z, train=True, mutable=["codebook"])
    counts = updates["codebook"]["stages_0"]["counts"]
    expected = 0.1 * np.bincount(np.asarray(out.indices).ravel(), minlength=8)
    np.testing.assert_allclose(counts, expected, rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
def test_beam_search_beats_greedy_on_what_is_left(train, batch):
    """vector-quantize-pytorch 1.31 failed here in evaluation, and in training for batches larger than one."""
    z = jax.random.normal(jax.random.key(3), (batch, 64, 8))
    errors = {}
    for size in (1, 8):
        module = ResidualVQ(VectorQuantizer(num_codes=32, estimator="straight_through"), 4, beam_size=size)
        variables = jax.jit(module.init)(KEY, z)
        out, _ = module.apply(variables, z, train=train, mutable=["codebook"])
        errors[size] = float(jnp.mean(jnp.square(z - out.quantized)))
    assert errors[8] < 0.95 * errors[1]


def test_beam_search_finds_the_best_sum_where_all_beams_fit():
    codes = jax.random.normal(KEY, (2, 4, 3))
    x = jax.random.normal(jax.random.key(5), (10, 3))

    def nearest(level, residual, above, count):
        distance = jnp.sum(jnp.square(residual[..., None, :] - codes[level][None, None]), axis=-1)
        return jax.lax.top_k(-distance, count)[1]

    found = beam_search(x, 2, 4, nearest, lambda level, indices, above: codes[level][indices])
    sums = (codes[0][:, None] + codes[1][None]).reshape(16, 3)
    best = jnp.argmin(jnp.sum(jnp.square(x[:, None] - sums[None]), axis=-1), axis=-1)
    np.testing.assert_array_equal(found[:, 0] * 4 + found[:, 1], best)


@pytest.mark.full
def test_a_beam_search_updates_no_frozen_codebook():
    """vector-quantize-pytorch moves it."""
    module = ResidualVQ(VectorQuantizer(num_codes=8, codebook="frozen"), 2, beam_size=3)
    variables = jax.jit(module.init)(KEY, Z)
    _, updates = module.apply(variables, Z, train=True, mutable=["codebook"])
    assert_alike(updates["codebook"], variables["codebook"], rtol=0)


@pytest.mark.full
def test_dropout_is_drawn_per_example():
    out, _ = trained("dropout")(variables_of("dropout"), Z, jnp.ones_like(MASK), KEY)
    depths = np.sum(np.asarray(out.indices) >= 0, axis=-1)
    assert np.all(depths == depths[:, :1])
    assert len(set(depths[:, 0])) > 1
    assert depths.min() >= 1
    expected = evaluated("dropout")(variables_of("dropout"), Z, jnp.ones_like(MASK))[1]
    kept = np.asarray(out.indices) >= 0
    np.testing.assert_array_equal(np.asarray(out.indices)[kept], np.asarray(expected)[kept])


def test_depths_keep_to_their_limits():
    draw = lambda **settings: np.asarray(draw_depths(KEY, 4000, 8, **settings))  # noqa: E731
    assert set(draw(probability=1.0)) == set(range(1, 9))
    assert set(draw(probability=1.0, min_stages=3, multiple=3)) == {3, 6, 8}
    half = draw(probability=0.5)
    assert np.mean(half == 8) == pytest.approx(0.5 + 0.5 / 8, abs=0.03)


@pytest.mark.full
def test_dropped_stages_take_no_part_in_statistics():
    module = ResidualVQ(VectorQuantizer(num_codes=8, codebook=EMACodebook(decay=0.0)), 3, dropout=1.0)
    variables = jax.jit(module.init)(KEY, Z)
    out, updates = module.apply(variables, Z, train=True, mutable=["codebook"], rngs={"quantizer": KEY})
    for number in range(3):
        reached = np.asarray(out.indices)[..., number]
        counts = np.bincount(reached[reached >= 0], minlength=8)
        np.testing.assert_allclose(updates["codebook"][f"stages_{number}"]["counts"], counts, rtol=1e-6)


def test_fewer_stages_decode_to_the_coarser_vector():
    variables = variables_of("default")
    indices = OPTIONS["default"].apply(variables, Z, method="encode")
    coarse = OPTIONS["default"].apply(variables, indices[..., :1], method="decode")
    np.testing.assert_array_equal(coarse, variables["codebook"]["stages_0"]["codes"][indices[..., 0]])
    dropped = OPTIONS["default"].apply(variables, indices.at[..., 1:].set(-1), method="decode")
    np.testing.assert_array_equal(coarse, dropped)


@pytest.mark.parametrize("name", ["default", "beam", "shared", "sizes", "implicit", "projected", "heads", "fsp"])
def test_the_first_stages_alone_are_encoded_as_by_a_quantizer_of_so_many(name):
    module, variables = OPTIONS[name], variables_of(name)
    sizes = None if module.stage_sizes is None else module.stage_sizes[:1]
    alone = module.clone(num_quantizers=1, stage_sizes=sizes)
    first = module.apply(variables, Z, MASK, num_quantizers=1, method="encode")
    np.testing.assert_array_equal(first, alone.apply(variables, Z, MASK, method="encode"))
    decoded = module.apply(variables, first, method="decode")
    np.testing.assert_array_equal(decoded, alone.apply(variables, first, method="decode"))
    if name != "beam":
        np.testing.assert_array_equal(first, module.apply(variables, Z, MASK, method="encode")[..., :1])


def test_the_first_stages_of_every_group_are_encoded():
    module, variables = OPTIONS["grouped"], variables_of("grouped")
    first = module.apply(variables, Z, num_quantizers=1, method="encode")
    np.testing.assert_array_equal(first, module.apply(variables, Z, method="encode")[..., :1])
    assert module.apply(variables, first, method="decode").shape == Z.shape


@pytest.mark.parametrize("count", [0, 4, True])
def test_other_numbers_of_stages_are_refused(count):
    with pytest.raises(UserError, match=rf"num_quantizers must be an integer in \[1, 3\], got {count}"):
        OPTIONS["default"].apply(variables_of("default"), Z, num_quantizers=count, method="encode")


def test_a_beam_of_one_is_greedy():
    module, variables = OPTIONS["default"], variables_of("default")
    codes = [variables["codebook"][f"stages_{stage}"]["codes"] for stage in range(3)]

    def candidates(stage, residuals, sums, count):
        assert count == 1
        return jnp.argmin(
            jnp.sum(jnp.square(residuals[..., None, :] - codes[stage][None, None, None]), axis=-1), axis=-1
        )[..., None]

    searched = beam_search(Z, 3, 1, candidates, lambda stage, indices, sums: codes[stage][indices])
    np.testing.assert_array_equal(searched, module.clone(beam_size=1).apply(variables, Z, method="encode"))


def test_indices_that_do_not_exist_show():
    for name in ("default", "grouped"):
        indices = OPTIONS[name].apply(variables_of(name), Z, method="encode")
        wrong = OPTIONS[name].apply(variables_of(name), jnp.full_like(indices, 8), method="decode")
        assert np.all(np.isnan(wrong))


@pytest.mark.full
def test_implicit_codebooks_and_codes_learn_from_the_loss():
    module, variables = OPTIONS["implicit"], variables_of("implicit")
    gradient = jax.grad(lambda p: module.apply(variables | {"params": p}, Z, train=False).loss)(variables["params"])
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_diveq_is_exact_in_evaluation_and_moves_the_codes_in_training():
    """vector-quantize-pytorch draws its noise in evaluation as well."""
    module, variables = OPTIONS["diveq"], variables_of("diveq")
    out = module.apply(variables, Z, train=False)
    np.testing.assert_allclose(out.quantized, module.apply(variables, out.indices, method="decode"), atol=1e-6)

    def value(params):
        out, _ = module.apply(
            variables | {"params": params}, Z, train=True, mutable=["codebook"], rngs={"quantizer": KEY}
        )
        return jnp.sum(jnp.square(out.quantized))

    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(jax.grad(value)(variables["params"])))


def test_kmeans_start_lowers_what_each_stage_leaves():
    module, variables = OPTIONS["default"], variables_of("default")
    _, started = module.apply(variables, Z, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": KEY})
    before, after = module.apply(variables, Z, train=False), module.apply(variables | started, Z, train=False)
    errors = [float(after.metrics[f"quantization_error_{number}"]) for number in range(3)]
    assert errors == sorted(errors, reverse=True)
    assert after.metrics["quantization_error"] < before.metrics["quantization_error"]


def with_dead_codes(variables, count):
    """The first codes of every codebook as if they had not been used for long."""

    def change(path, leaf):
        return leaf.at[..., :count].set(0) if path[-1].key == "relative_usage" else leaf

    return jax.tree_util.tree_map_with_path(change, variables)


def test_dead_codes_of_a_shared_codebook_are_counted_once():
    out = OPTIONS["shared"].apply(with_dead_codes(variables_of("shared"), 3), Z, train=False)
    assert float(out.metrics["dead_codes"]) == 3


@pytest.mark.parametrize("name", ["default", "sizes", "shared", "beam", "dropout"])
def test_every_stage_reports_the_use_of_its_codes(name):
    module = OPTIONS[name]
    # So many that some are dead after the step, too.
    out, _ = trained(name)(with_dead_codes(variables_of(name), 7), Z, MASK, KEY)
    sizes = module.stage_sizes or (8,) * 3
    for stage, size in enumerate(sizes):
        chosen = np.asarray(out.indices[..., stage]).ravel()
        counts = np.bincount(chosen[chosen >= 0], minlength=size)
        share = counts[counts > 0] / counts.sum()
        np.testing.assert_allclose(
            out.metrics[f"perplexity_{stage}"], np.exp(-np.sum(share * np.log(share))), rtol=1e-5
        )
        np.testing.assert_allclose(out.metrics[f"usage_{stage}"], np.mean(counts > 0), rtol=1e-6)
    dead = [name for name in out.metrics if name.startswith("dead_codes_")]
    if name == "shared":
        assert not dead
    else:
        assert float(sum(out.metrics[name] for name in dead)) == float(out.metrics["dead_codes"]) > 0
        assert len(dead) == len(sizes)


def test_every_group_reports_the_use_of_its_codes():
    module, variables = OPTIONS["grouped"], with_dead_codes(variables_of("grouped"), 2)
    metrics = module.apply(variables, Z, MASK, train=False).metrics
    for name in ("perplexity", "usage"):
        each = [float(metrics[f"{name}_group_{group}"]) for group in range(2)]
        assert float(metrics[name]) == pytest.approx(np.mean(each), rel=1e-6)
        stages = [float(metrics[f"{name}_{stage}"]) for stage in range(2)]
        assert float(metrics[name]) == pytest.approx(np.mean(stages), rel=1e-6)
    for part in ("group_", ""):
        assert [float(metrics[f"dead_codes_{part}{i}"]) for i in range(2)] == [float(metrics["dead_codes"]) / 2] * 2
    assert float(metrics["dead_codes"]) == 2 * 2 * 2


def test_every_index_is_counted_among_the_codes_that_it_chooses_from():
    sizes = {
        "default": (8, 8, 8),
        "sizes": (8, 4, 2),
        "shared": (8,),
        "grouped": (8, 8, 8, 8),
        "grouped_stages": (8,) * 6,
        "heads": (8,) * 6,
        "product": (8, 8),
    }
    for name, expected in sizes.items():
        assert OPTIONS[name].codebook_sizes == expected, name
        assert OPTIONS[name].num_codebooks == len(expected), name
    assert Grouped(OPTIONS["sizes"], 2).codebook_sizes == (8, 4, 2, 8, 4, 2)
    assert Grouped(OPTIONS["shared"], 2).codebook_sizes == (8,) * 6
    assert Grouped(STAGE.clone(heads=2), 2).codebook_sizes == (8,) * 4


def unequal(*shape):
    """Vectors whose second half is a hundred times smaller."""
    return jnp.asarray(np.asarray(jax.random.normal(KEY, shape)) * np.repeat(np.float32([1.0, 0.01]), shape[-1] // 2))


# A quantizer of groups, and one that has the same codes side by side.
SIDE_BY_SIDE = {
    "heads": (Grouped(STAGE, 2), ProductVQ(8, heads=2)),
    "cosine heads": (Grouped(STAGE.clone(distance="cosine"), 2), ProductVQ(8, heads=2, distance="cosine")),
    "codebooks": (Grouped(FSQ((4, 3)), 2), FSQ((4, 3), num_codebooks=2)),
    "rotated": (Grouped(LFQ(2), 2), LFQ(2, num_codebooks=2)),
}


@pytest.mark.full
@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_errors_and_sizes_of_groups_are_those_of_the_whole(name):
    grouped, whole = SIDE_BY_SIDE[name]
    z, mask = unequal(8, 6, 4), MASK
    variables = jax.jit(grouped.init)({"params": KEY, "quantizer": KEY}, z)
    parts = variables.get("codebook", {}).values()
    joined = {"codebook": jax.tree.map(lambda *each: jnp.stack(each), *parts)} if parts else {}
    for masks in ((), (mask,)):
        metrics = grouped.apply(variables, z, *masks, train=False).metrics
        expected = whole.apply(joined, z, *masks, train=False).metrics
        for metric in {"quantization_error", "relative_error", "rms_latents", "rms_codes"} & expected.keys():
            np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-5, err_msg=metric)


def test_the_relative_error_of_groups_of_stages_is_a_ratio_of_totals():
    module, z = Grouped(Residual(STAGE, 2), 2), unequal(8, 6, 4)
    variables = jax.jit(module.init)(KEY, z)
    out = module.apply(variables, z, train=False)
    expected = np.sum(np.square(z - out.quantized)) / np.sum(np.square(z))
    np.testing.assert_allclose(out.metrics["relative_error"], expected, rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("mapped", [False, True])
def test_groups_measure_the_global_batch(mapped):
    module, z = Grouped(STAGE, 2), unequal(64, 4)
    if mapped:
        # The axis belongs to the template.
        module = Grouped(STAGE.clone(axis_name="data"), 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    variables = jax.jit(module.init)(KEY, z)
    expected = Grouped(STAGE, 2).apply(variables, z, train=False).metrics
    run = lambda z: module.apply(variables, z, train=False).metrics  # noqa: E731
    if mapped:
        average = lambda z: jax.tree.map(lambda x: jax.lax.pmean(x, "data"), run(z))  # noqa: E731
        actual = jax.shard_map(average, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P())(z)
    else:
        actual = jax.jit(run)(jax.device_put(z, jax.NamedSharding(mesh, jax.P("data"))))
    assert_alike(actual, expected, rtol=2e-5, atol=1e-6)


def test_grouped_quantizers_are_their_parts():
    module, variables = OPTIONS["grouped"], variables_of("grouped")
    out = module.apply(variables, Z, train=False)
    for number in range(2):
        part = {"codebook": variables["codebook"][f"parts_{number}"]}
        alone = ResidualVQ(STAGE, 2).apply(part, Z[..., 2 * number : 2 * number + 2], train=False)
        np.testing.assert_array_equal(out.indices[..., number, :], alone.indices)
        np.testing.assert_array_equal(out.quantized[..., 2 * number : 2 * number + 2], alone.quantized)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResidualVQ(STAGE, 0), "num_quantizers must be a positive integer, got 0"),
        (lambda: ResidualVQ(STAGE, 2, dropout=1.5), "dropout must be a probability in (0, 1], or None"),
        (lambda: ResidualVQ(STAGE, 2, dropout_min_stages=3), "dropout_min_stages must be an integer in [1, 2]"),
        (lambda: ResidualVQ(STAGE, 3, dropout_min_stages=2), "dropout_min_stages must be 1, got 2; nothing is dropped"),
        (
            lambda: ResidualVQ(STAGE.clone(latent_norm="rms", differentiate_norm=False), 2),
            "quantizer.differentiate_norm must be True if gradient='total'",
        ),
        (
            lambda: ResidualVQ(STAGE.clone(codebook_shards=4), 3, stage_sizes=(4, 6, 8)),
            "codebook_shards must be an integer that divides num_codes=6",
        ),
        (lambda: ResidualVQ(STAGE, 2, stage_sizes=(8,)), "stage_sizes must be 2 positive integers"),
        (lambda: ResidualVQ(STAGE, 2, stage_sizes=(8, 0)), "stage_sizes must be 2 positive integers"),
        (
            lambda: ResidualVQ(STAGE, 2, stage_sizes=(8, 4), shared_codebook=True),
            "a shared codebook has the num_codes of the quantizer",
        ),
        (lambda: ResidualVQ(STAGE, 2, beam_size=0), "beam_size must be a positive integer, got 0"),
        (lambda: ResidualVQ(STAGE.clone(heads=2), 2, beam_size=2), "quantizer.heads must be 1 with a beam search"),
        (lambda: ResidualVQ(STAGE.clone(estimator="gumbel_softmax"), 2), "or use gradient='per_stage'"),
        (lambda: Residual(IBQ(8), 2), "or use gradient='per_stage'"),
        (lambda: ResidualVQ(STAGE.clone(codebook_dim=2), 2), "or use gradient='per_stage'"),
        (lambda: Residual(Grouped(STAGE.clone(codebook_dim=2), 2), 2), "or use gradient='per_stage'"),
        (lambda: ResidualVQ(STAGE, 2, implicit_codebooks=ImplicitCodebook()), "quantizer.codebook must be learned"),
        (lambda: ResidualVQ(STAGE.clone(sampling_temperature=1.0), 2, beam_size=2), "sampling_temperature"),
        (lambda: Residual(BinaryMapper(4), 2), "quantizer must be a quantizer whose output approximates its input"),
        (lambda: Residual(RandomProjectionQuantizer(4, 4), 2), "quantizer must be a quantizer whose output"),
        (lambda: Residual(FSP((4, 4)), 2), "quantizer must be a quantizer whose output approximates its input"),
        (
            lambda: Residual(Residual(STAGE, 2), 2),
            "quantizer must be a quantizer whose output approximates its input",
        ),
        (
            lambda: Residual(LFQ(4), 2, shared_codebook=True),
            "shared_codebook must be False, got True; LFQ does not support it",
        ),
        (lambda: Residual(FSQ((4, 4)), 2).apply({}, Z[..., :2], method="kmeans_init"), "has no codebook to initialize"),
        (lambda: Grouped(ResidualVQ(STAGE, 2), 0), "groups must be a positive integer, got 0"),
        (lambda: Grouped(ResidualVQ(STAGE, 2), 3).init(KEY, Z), "groups must be a divisor of the 4 features of z"),
        (lambda: OPTIONS["default"].apply(variables_of("default"), jnp.zeros((2, 4), int), method="decode"), "stages"),
        (lambda: OPTIONS["dropout"].apply(variables_of("dropout"), Z, train=True, mutable=["codebook"]), "rngs"),
        (lambda: OPTIONS["default"].apply(variables_of("default"), Z, train=True), "mutable=['codebook']"),
        (lambda: OPTIONS["projected"].apply(variables_of("projected"), Z[..., :3], train=False), "of 3 features"),
    ],
)
def test_mistakes_are_explained(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)


def test_a_shared_codebook_is_measured_alike_in_training_and_evaluation():
    """Bug: evaluations averaged the perplexities of the stages, and training had that of all tokens."""
    quantizer = ResidualVQ(STAGE, 3, shared_codebook=True)
    variables = quantizer.init(KEY, Z)
    evaluated = quantizer.apply(variables, Z, train=False).metrics
    trained = quantizer.apply(variables, Z, train=True, mutable=["codebook"])[0].metrics
    for name in ("perplexity", "usage"):
        np.testing.assert_allclose(evaluated[name], trained[name], rtol=1e-6)
