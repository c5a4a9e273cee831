"""Confirmed defects of vector-quantize-pytorch 1.31, each as a property that holds here.

The numbers are those of a list of twenty. Some stand in the tests of their class: 1 (beam search), 8 (gradients) and 15
(shared codebooks) in test_residual.py, 5 (entropy over devices) in test_lookup_free.py, and of 16 what concerns indices
(test_finite_scalar.py), learned values (test_scalar_fsp_and_latent.py) and clusters (test_multi_scale.py).
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from helpers.quantizing import gaussian, replacing
from vqjax import EMACodebook, GradientCodebook, Grouped, Replacement, ResidualVQ, UserError, VectorQuantizer
from vqjax.estimators import gumbel_softmax
from vqjax.functional.regularizers import Orthogonality
from vqjax.quantizers import RunningAffine

pytestmark = pytest.mark.full

CODES, DIM, TOKENS = 16, 4, 64
KEY = jax.random.key(6)


def create(dim=DIM, **arguments):
    vq = VectorQuantizer(num_codes=CODES, **arguments)
    return vq, jax.jit(vq.init)(KEY, jnp.ones((1, dim)))


@functools.partial(jax.jit, static_argnames="vq")
def train(vq, variables, z, mask=None, key=KEY):
    out, changed = vq.apply(variables, z, mask, train=True, mutable=["codebook"], rngs={"quantizer": key})
    return out, variables | changed


@pytest.mark.parametrize("arguments", [{"distance": "cosine"}, {"codebook_dim": 2}, {"heads": 2}])
def test_defect_02_a_mask_of_all_true_changes_no_loss(arguments):
    vq, variables = create(**arguments)
    z = 10 * gaussian(TOKENS, DIM)
    masked = vq.apply(variables, z, jnp.ones(TOKENS, bool), train=False)
    np.testing.assert_allclose(masked.loss, vq.apply(variables, z, train=False).loss, rtol=1e-6)
    nothing = vq.apply(variables, z, jnp.zeros(TOKENS, bool), train=False)
    assert float(nothing.loss) == 0


def test_defect_03_an_image_goes_through_groups_of_stages():
    template = ResidualVQ(VectorQuantizer(num_codes=CODES), num_quantizers=2)
    vq = Grouped(template, groups=2)
    image = gaussian(1, 5, 3, DIM)
    variables = vq.init(KEY, image)
    out = vq.apply(variables, image, train=False)
    assert out.quantized.shape == image.shape
    assert out.indices.shape == (1, 5, 3, 2, 2)
    np.testing.assert_array_equal(vq.apply(variables, out.indices, method="decode"), out.quantized)


def test_defect_04_the_affine_map_is_in_decode_and_evaluation_leaves_its_statistics():
    vq, variables = create(codebook=EMACodebook(transform=RunningAffine()))
    out, changed = vq.apply(variables, gaussian(TOKENS, DIM), train=False, mutable=["codebook"])
    jax.tree.map(np.testing.assert_array_equal, changed["codebook"], variables["codebook"])
    assert bool(jnp.all(jnp.isfinite(out.quantized)))
    z = 5 * gaussian(TOKENS, DIM) + 20
    _, trained = train(vq, variables, z)
    evaluated = vq.apply(trained, z, train=False)
    np.testing.assert_array_equal(evaluated.quantized, vq.apply(trained, evaluated.indices, method="decode"))
    shapes = jax.tree.map(jnp.shape, (variables, trained))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("valid", [TOKENS, TOKENS // 8])
def test_defects_06_and_07_replacement_agrees_on_all_devices_also_where_some_have_no_valid_token(valid):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    options = {"codebook": replacing(below=0.99)}
    vq, variables = create(**options, axis_name="data")
    plain, _ = create(**options)
    z, mask = gaussian(TOKENS, DIM), jnp.arange(TOKENS) < valid
    step = lambda z, mask: train(vq, variables, z, mask)[1]["codebook"]  # noqa: E731
    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=True)(z, mask)
    expected = train(plain, variables, z, mask)[1]["codebook"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mapped, expected)


def test_defect_09_straight_through_gumbel_softmax_has_a_gradient_of_its_own():
    z, codes = gaussian(TOKENS, DIM), gaussian(CODES, DIM, seed=1)
    weights = gaussian(TOKENS, DIM, seed=2)
    gradient = jax.grad(lambda z: jnp.sum(gumbel_softmax(z, codes, key=KEY)[0] * weights))(z)
    assert float(jnp.max(jnp.abs(gradient - weights))) > 0.1


def test_defect_10_synchronization_reaches_the_codes_and_leaves_the_encoder():
    z = gaussian(TOKENS, DIM)
    learned = GradientCodebook(weight=0.0, sync_nu=0.5)
    vq, variables = create(codebook=learned, estimator="straight_through")
    run = lambda params, z: jnp.sum(vq.apply(variables | {"params": params}, z, train=False).quantized)  # noqa: E731
    of_params, of_z = jax.grad(run, argnums=(0, 1))(variables["params"], z)
    np.testing.assert_array_equal(of_z, jnp.ones_like(z))
    assert float(jnp.sum(of_params["codes"])) == pytest.approx(0.5 * TOKENS * DIM)


def test_defect_11_orthogonality_is_refused_where_moving_averages_would_erase_it():
    with pytest.raises(UserError, match="without Orthogonality unless codes are learned by gradient"):
        VectorQuantizer(num_codes=CODES, regularizers=(Orthogonality(1.0),))
    vq, variables = create(codebook="gradient", regularizers=(Orthogonality(10.0),))
    moved = variables | {"params": {"codes": variables["params"]["codes"] + 1000}}
    _, after = train(vq, moved, gaussian(TOKENS, DIM))
    np.testing.assert_array_equal(vq.apply(after, jnp.arange(CODES), method="decode"), moved["params"]["codes"])


@pytest.mark.parametrize("arguments", [{}, {"codebook_dim": 4}, {"codebook_dim": 3, "heads": 2}])
def test_defect_12_decode_inverts_any_layout_and_minus_one_is_no_code(arguments):
    vq, variables = create(**arguments)
    images = gaussian(2, 4, 4, DIM)
    indices = vq.apply(variables, images, method="encode")
    decoded = vq.apply(variables, indices, method="decode")
    np.testing.assert_allclose(decoded, vq.apply(variables, images, train=False).quantized, rtol=1e-5, atol=1e-6)
    assert bool(jnp.all(vq.apply(variables, jnp.full_like(indices, -1), method="decode") == 0))


def test_defect_13_one_token_and_an_image_have_a_commitment_loss():
    vq, variables = create()
    for shape in [(DIM,), (2, 3, 3, DIM)]:
        assert float(vq.apply(variables, gaussian(*shape), train=False).loss) > 0


def test_defect_14_empty_clusters_and_unused_codes_do_not_drift_to_zero():
    vq, variables = create(codebook=EMACodebook(decay=0.8))
    few = gaussian(5, DIM) + 10
    _, started = vq.apply(variables, few, method="kmeans_init", mutable=["codebook"], rngs={"quantizer": KEY})
    assert float(jnp.min(jnp.linalg.norm(started["codebook"]["codes"], axis=-1))) > 1
    apart = variables["codebook"]["codes"]
    for _ in range(100):
        out, variables = train(vq, variables, few)
    unused = np.setdiff1d(np.arange(CODES), np.asarray(out.indices))
    unused = unused[np.asarray(variables["codebook"]["counts"])[unused] == 0]
    np.testing.assert_array_equal(variables["codebook"]["codes"][unused], apart[unused])


def test_defect_14_the_default_threshold_does_not_replace_all_codes_at_every_step():
    # n=1024, K=512, threshold 2 replaces 501 of 512 codes at every step there; ours is relative to tokens / codes.
    vq = VectorQuantizer(num_codes=512, codebook=replacing(decay=0.8))
    z = gaussian(1024, 8)
    variables = vq.init(KEY, z)
    changed = []
    for step in range(30):
        before = variables["codebook"]["relative_usage"]
        _, variables = train(vq, variables, z, key=jax.random.key(step))
        changed.append(int(jnp.sum((variables["codebook"]["relative_usage"] == 1) & (before < 0.1))))
    assert sum(changed) < 512
    assert changed[-1] < 50


def test_defect_16_evaluation_draws_no_noise():
    vq = ResidualVQ(VectorQuantizer(num_codes=CODES, estimator="diveq"), num_quantizers=2)
    z = gaussian(TOKENS, DIM)
    variables = vq.init(KEY, z)
    out = vq.apply(variables, z, train=False)
    np.testing.assert_array_equal(out.quantized, vq.apply(variables, out.indices, method="decode"))


def test_defect_17_the_state_is_float32_under_bfloat16_inputs_and_a_small_change_counts():
    vq, variables = create()
    z = gaussian(TOKENS, DIM).astype(jnp.bfloat16)
    out, after = train(vq, variables, z)
    assert out.quantized.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    settled = after | {"codebook": after["codebook"] | {"counts": jnp.full(CODES, TOKENS / CODES)}}
    _, moved = train(vq, settled, z)
    counts = np.bincount(vq.apply(settled, z, train=False).indices, minlength=CODES)
    assert bool(jnp.all((moved["codebook"]["counts"] != TOKENS / CODES) == (counts != TOKENS / CODES)))


def test_defect_18_no_array_of_tokens_by_codes_beyond_a_chunk():
    tokens, codes = 8192, 4096
    vq = VectorQuantizer(num_codes=codes)
    z = jax.ShapeDtypeStruct((tokens, DIM), jnp.float32)
    variables = jax.eval_shape(vq.init, KEY, z)
    step = jax.jit(lambda variables, z: vq.apply(variables, z, train=True, mutable=["codebook"]))
    temporary = step.lower(variables, z).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 3 * 4 * 2**23 < tokens * codes * 4


def test_defect_19_a_training_step_has_no_callback_to_the_host_and_no_hidden_first_call():
    vq, variables = create(codebook=EMACodebook(replace=Replacement(unused_after=2)))
    z = gaussian(TOKENS, DIM)
    program = str(jax.make_jaxpr(lambda v, z: train(vq, v, z))(variables, z))
    assert "callback" not in program
    after = train(vq, variables, z)[1]
    assert jax.tree.structure(after) == jax.tree.structure(variables)


def test_defect_20_fewer_than_half_the_arguments_and_one_return_type_in_training_and_evaluation():
    arguments = set(inspect.signature(VectorQuantizer).parameters) - {"parent", "name"}
    assert len(arguments) <= 44 // 2
    vq, variables = create()
    z = gaussian(TOKENS, DIM)
    trained, evaluated = train(vq, variables, z)[0], vq.apply(variables, z, train=False)
    assert jax.tree.structure(trained) == jax.tree.structure(evaluated)
    assert float(evaluated.loss) == float(trained.loss) > 0
