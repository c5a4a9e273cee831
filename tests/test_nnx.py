"""Quantizers in flax.nnx models."""

import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx

import vqjax
from helpers.quantizing import CODES, DIM, gaussian, replacing
from vqjax import GradientCodebook, MultiScaleVQ, QuantizerOutput, Residual, UserError, VectorQuantizer
from vqjax.nnx import CodebookState, Quantizer
from vqjax.quantizers import ImplicitCodebook

FEATURES = 8


class Autoencoder(nnx.Module):
    def __init__(self, rngs, **arguments):
        self.encoder = nnx.Linear(FEATURES, DIM, rngs=rngs)
        self.vq = Quantizer(VectorQuantizer(num_codes=CODES, **arguments), dim=DIM, rngs=rngs)
        self.decoder = nnx.Linear(DIM, FEATURES, rngs=rngs)

    def __call__(self, x, train=None):
        out = self.vq(self.encoder(x), train=train)
        return self.decoder(out.quantized), out


@nnx.jit
def step(model, optimizer, x):
    def objective(model):
        reconstruction, out = model(x)
        return jnp.mean(jnp.square(reconstruction - x)) + out.loss

    loss, gradient = nnx.value_and_grad(objective)(model)
    optimizer.update(model, gradient)
    return loss


@nnx.jit
def evaluate(model, x):
    return model(x, train=False)[0]


def quantizer(seed=0, **arguments):
    return Quantizer(VectorQuantizer(num_codes=CODES, **arguments), dim=DIM, rngs=nnx.Rngs(seed))


def snapshot(module):
    """Every variable of a module, random state included, as NumPy arrays by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _to_numpy(value)
        for path, value in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(module)))
    }


def _to_numpy(value):
    return np.asarray(jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value)


def assert_equal(x, y):
    for value, expected in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_array_equal(value, expected)


def codes_of(module):
    return np.asarray(module.decode(jnp.arange(CODES)))


@pytest.mark.parametrize("arguments", [{"codebook": replacing()}, {"codebook": replacing("gradient")}])
def test_an_autoencoder_trains(arguments):
    model, x = Autoencoder(nnx.Rngs(0), **arguments), gaussian(64, FEATURES)
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    codes, held = codes_of(model.vq), model.vq.variables["codebook"]["relative_usage"]
    losses = [float(step(model, optimizer, x)) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    assert np.any(codes_of(model.vq) != codes, axis=-1).mean() > 0.5
    assert np.isfinite(codes_of(model.vq)).all()
    # The variables are the first ones, updated in place.
    assert held is model.vq.variables["codebook"]["relative_usage"]
    assert np.any(held[...] != 1)
    # The optimizer saw the codes exactly where they are learned.
    moments = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(optimizer, nnx.OptState))}
    assert any("codes" in path for path in moments) == arguments["codebook"].in_params


def test_it_is_the_linen_module_bit_for_bit():
    module, z = VectorQuantizer(num_codes=CODES), gaussian(5, 3, DIM)
    mask = jnp.arange(15).reshape(5, 3) % 4 > 0
    variables = module.init(jax.random.key(7), z)
    vq = Quantizer(module, dim=DIM, rngs=nnx.Rngs(0), variables=variables)
    for _ in range(3):
        out = vq(z, mask, train=True)
        expected, updates = module.apply(variables, z, mask, train=True, mutable=["codebook"])
        variables = variables | updates
        assert_equal(out, expected)
    state = nnx.to_pure_dict(nnx.state(vq))["variables"]
    assert_equal(state, variables)
    indices = vq.encode(z, mask)
    np.testing.assert_array_equal(indices, module.apply(variables, z, mask, method="encode"))
    np.testing.assert_array_equal(vq.decode(indices), module.apply(variables, indices, method="decode"))


def test_given_variables_are_copied():
    module = VectorQuantizer(num_codes=CODES)
    variables = jax.tree.map(np.array, module.init(jax.random.key(7), gaussian(2, DIM)))
    vq = Quantizer(module, dim=DIM, rngs=nnx.Rngs(0), variables=variables)
    before = codes_of(vq)
    variables["codebook"]["codes"][:] = 0
    np.testing.assert_array_equal(codes_of(vq), before)


def test_only_training_changes_anything():
    vq, z = quantizer(codebook=replacing()), gaussian(5, DIM)
    before = snapshot(vq)
    vq(z, train=False)
    vq.decode(vq.encode(z))
    for name, value in snapshot(vq).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    vq(z, train=True)
    changed = {name for name, value in snapshot(vq).items() if np.any(value != before[name])}
    assert changed == {f"variables/codebook/{name}" for name in ("codes", "counts", "sums", "relative_usage")} | {
        "rngs/count"
    }


def test_a_module_may_take_further_inputs():
    z, condition = gaussian(2, 5, DIM)
    module = VectorQuantizer(num_codes=CODES, codebook=GradientCodebook(transform=ImplicitCodebook(1, 8)))
    vq = Quantizer(module, dim=DIM, rngs=nnx.Rngs(0), condition=jnp.zeros((1, DIM)))
    out = vq(z, condition=condition, train=True)
    np.testing.assert_array_equal(vq.encode(z, condition=condition), out.indices)
    np.testing.assert_allclose(vq.decode(out.indices, condition=condition), out.quantized, rtol=1e-5, atol=1e-6)


def test_train_and_eval_set_the_mode_and_the_call_overrides_it():
    model, x = Autoencoder(nnx.Rngs(0)), gaussian(5, FEATURES)
    with pytest.raises(UserError, match="train must be True or False for VectorQuantizer, got None"):
        model(x)
    model.train()

    def learns(model, **arguments):
        before = codes_of(model.vq)
        model(x, **arguments)
        return bool(np.any(codes_of(model.vq) != before))

    assert learns(model)
    model.eval()
    assert not learns(model)
    assert learns(model, train=True)
    model.train()
    assert learns(model)
    assert not learns(model, train=False)
    assert not learns(nnx.view(model, deterministic=True))
    assert learns(Autoencoder(nnx.Rngs(0), train=True))
    assert not learns(Autoencoder(nnx.Rngs(0), train=False))
    assert learns(Autoencoder(nnx.Rngs(0), train=False), train=True)


def test_kmeans_starts_the_codebook_in_place():
    vq, z = quantizer(), 3 * gaussian(60, DIM)
    before = vq(z, train=False).metrics["quantization_error"]
    vq.kmeans_init(z, iterations=5)
    assert vq(z, train=False).metrics["quantization_error"] < 0.5 * before


@pytest.mark.parametrize("streams", [{"default": 0}, {"params": 0, "quantizer": 1}, {"default": 0, "quantizer": 1}])
def test_random_numbers_come_from_the_stream_quantizer_or_the_default(streams):
    def codes(**streams):
        return codes_of(Quantizer(VectorQuantizer(num_codes=CODES), dim=DIM, rngs=nnx.Rngs(**streams)))

    np.testing.assert_array_equal(codes(**streams), codes(**streams))
    decisive = "quantizer" if "quantizer" in streams else "default"
    assert np.any(codes(**streams) != codes(**{**streams, decisive: 5}))
    if decisive == "quantizer":
        other = next(name for name in streams if name != decisive)
        np.testing.assert_array_equal(codes(**streams), codes(**{**streams, other: 5}))


def test_each_call_draws_its_own_random_numbers_and_the_state_repeats_them():
    z = gaussian(40, DIM)
    graphdef, state = nnx.split(quantizer())
    first, second = nnx.merge(graphdef, state, copy=True), nnx.merge(graphdef, state, copy=True)
    starts = []
    for vq in (first, first, second):
        vq.kmeans_init(z, iterations=0)
        starts.append(codes_of(vq))
    assert np.any(starts[0] != starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])


def test_split_separates_the_codebook_from_what_is_learned():
    _, params, codebook, rest = nnx.split(quantizer(codebook=replacing("gradient")), nnx.Param, CodebookState, ...)
    assert set(params["variables"]["params"]) == {"codes"}
    assert set(codebook["variables"]["codebook"]) == {"offsets", "relative_usage"}
    assert set(rest) == {"rngs"}
    assert not nnx.to_flat_state(nnx.state(quantizer(), nnx.Param))


@pytest.mark.full
def test_a_checkpoint_of_the_state_continues_exactly(tmp_path):
    z = gaussian(5, DIM)
    vq = quantizer(codebook=replacing())
    vq(z, train=True)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(vq)))
        checkpointer.wait_until_finished()
        restored = quantizer(seed=1, codebook=replacing())
        state = nnx.state(restored)
        nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(state)))
    nnx.update(restored, state)
    vq(z, train=True)
    restored(z, train=True)
    for name, value in snapshot(restored).items():
        np.testing.assert_array_equal(value, snapshot(vq)[name], err_msg=name)


def test_scan_over_batches_is_a_loop_over_batches():
    batches = gaussian(3, 5, DIM)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def train(vq, z):
        return vq, vq(z, train=True).loss

    scanned, looped = quantizer(), quantizer()
    scanned, losses = train(scanned, batches)
    expected = [looped(z, train=True).loss for z in batches]
    np.testing.assert_allclose(losses, jnp.stack(expected), rtol=1e-6)
    np.testing.assert_allclose(codes_of(scanned), codes_of(looped), rtol=1e-6, atol=1e-7)


@pytest.mark.full
def test_vmap_makes_independent_quantizers():
    @nnx.vmap
    def create(rngs):
        return Quantizer(VectorQuantizer(num_codes=CODES), dim=DIM, rngs=rngs)

    @nnx.vmap
    def train(vq, z):
        return vq(z, train=True).quantized

    z = gaussian(2, 5, DIM)
    both = create(nnx.Rngs(0).split(2))
    before = both.variables["codebook"]["codes"][...]
    assert before.shape == (2, CODES, DIM)
    assert np.any(before[0] != before[1])
    module = VectorQuantizer(num_codes=CODES)
    alone = module.apply({"codebook": {"codes": before[1], **_untouched()}}, z[1], train=False)
    np.testing.assert_array_equal(train(both, z)[1], alone.quantized)
    assert np.any(both.variables["codebook"]["codes"][...] != before, axis=(1, 2)).all()


def _untouched():
    return {"counts": jnp.zeros(CODES), "sums": jnp.zeros((CODES, DIM)), "relative_usage": jnp.ones(CODES)}


def test_rematerialization_updates_once():
    module, z = VectorQuantizer(num_codes=CODES), gaussian(5, DIM)
    variables = module.init(jax.random.key(7), z)

    @nnx.jit
    def gradient(vq, z):
        objective = nnx.remat(lambda vq, z: vq(z, train=True).loss)
        return nnx.grad(objective, argnums=1)(vq, z)

    vq = Quantizer(module, dim=DIM, rngs=nnx.Rngs(0), variables=variables)
    gradient(vq, z)
    _, updates = module.apply(variables, z, train=True, mutable=["codebook"])
    state = nnx.to_pure_dict(nnx.state(vq, CodebookState))["variables"]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), state, dict(updates))


class SameNameTwice(nn.Module):
    """``params`` and ``codebook`` hold a variable of the same name, and ``codebook`` one in a submodule."""

    @nn.compact
    def __call__(self, z, mask=None, train=False):
        scale = self.param("codes", nn.initializers.ones, ())
        count = self.variable("codebook", "codes", jnp.zeros, ())
        seen = nn.BatchNorm(use_running_average=not train, name="statistics")(z)
        if train:
            count.value += 1
        return QuantizerOutput(scale * seen, jnp.zeros(z.shape[:-1], jnp.int32), count.value, {})

    def encode(self, z, mask=None):
        return jnp.zeros(z.shape[:-1], jnp.int32)

    def decode(self, indices):
        return jnp.zeros((*indices.shape, DIM))


def test_collections_may_share_names():
    # flax.nnx.bridge.ToNNX puts all collections in one name space and refuses this.
    vq, z = Quantizer(SameNameTwice(), dim=DIM, rngs=nnx.Rngs(0)), gaussian(5, DIM)
    out = vq(z, train=True)
    assert out.loss == 1
    assert vq.variables["codebook"]["codes"][...] == 1
    assert vq.variables["params"]["codes"][...] == 1
    assert np.any(vq.variables["batch_stats"]["statistics"]["mean"][...] != 0)
    assert isinstance(vq.variables["batch_stats"]["statistics"]["mean"], nnx.BatchStat)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": nn.Dense(3)}, "Dense"),
        ({"module": VectorQuantizer}, "pass an instance"),
        ({"dim": 0}, "dim must be a positive integer, got 0"),
        ({"dim": (4,)}, r"dim must be .*, got \(4,\)"),
        ({"rngs": 3}, r"nnx\.Rngs\(seed\)"),
        ({"rngs": nnx.Rngs(params=0)}, "stream 'quantizer' or a default, got .*'params'"),
        ({"rngs": nnx.Rngs(quantizer=0)}, "stream 'params' or a default, got .*'quantizer'"),
        ({"variables": {}}, "same dim"),
        ({"variables": {"codebook": {"codes": jnp.zeros((CODES, DIM + 1)), **_untouched()}}}, r"\(12, 5\)"),
    ],
)
def test_mistakes_are_refused(arguments, message, as_users_run_it):
    arguments = {"module": VectorQuantizer(num_codes=CODES), "dim": DIM, "rngs": nnx.Rngs(0)} | arguments
    with pytest.raises(UserError, match=message):
        Quantizer(arguments.pop("module"), **arguments)


def test_borrowing_a_linen_quantizer_does_not_load_this():
    program = "import sys, vqjax; assert 'vqjax.nnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(vqjax.__file__).parents[1], check=True)


@pytest.mark.full
def test_encode_and_decode_take_what_the_module_takes():
    z = gaussian(2, 4, DIM)
    stages = Quantizer(Residual(VectorQuantizer(num_codes=8), num_quantizers=3), dim=DIM, rngs=nnx.Rngs(0))
    first = stages.encode(z, num_quantizers=1)
    np.testing.assert_array_equal(first, stages.encode(z)[..., :1])
    assert stages.decode(first).shape == z.shape
    module = MultiScaleVQ(VectorQuantizer(num_codes=8), scales=(1, 2), spatial_dims=1)
    scales = Quantizer(module, dim=DIM, rngs=nnx.Rngs(0))
    assert scales.decode(scales.encode(z), shape=(4,)).shape == z.shape
