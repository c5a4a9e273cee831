"""FSQ, alone and in Residual, FSP and LatentQuantizer beside vector-quantize-pytorch 1.32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax.quantizers.residual import Residual
from vqjax.quantizers.scalar import FSP, FSQ, LatentQuantizer

torch = pytest.importorskip("torch")
peer = pytest.importorskip("vector_quantize_pytorch")

LEVELS, DIM = (8, 5, 5, 4), 4


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def projections_of(theirs):
    """Theirs keep a kernel with its output axis first."""
    params = {}
    for name in ("project_in", "project_out"):
        layer = getattr(theirs, name)
        if hasattr(layer, "weight"):
            params |= {f"{name}_kernel": layer.weight.T, f"{name}_bias": layer.bias}
    return {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}


def compare(ours, variables, theirs, z, rtol=1e-5):
    """Values, indices, gradients and the decoded indices; returns both outputs."""
    x = torch.tensor(z, requires_grad=True)
    output = theirs(x)
    weights = normal(*output[0].shape, seed=9)
    (output[0] * torch.tensor(weights)).sum().backward()
    out, pull = jax.vjp(lambda z: ours.apply(variables, z, train=False).quantized, jnp.asarray(z))
    close(out, output[0], rtol=rtol)
    close(pull(jnp.asarray(weights))[0], x.grad, rtol=1e-4, atol=2e-6)
    result = ours.apply(variables, jnp.asarray(z), train=False)
    np.testing.assert_array_equal(result.indices, output[1])
    return result, output


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("hard_clamp", [False, True])
def test_fsq(symmetric, hard_clamp):
    arguments = {"bound_hard_clamp": hard_clamp, "preserve_symmetry": symmetric}
    ours = FSQ(LEVELS, bound="symmetric" if symmetric else "asymmetric", hard_clamp=hard_clamp)
    for scale in (0.3, 1.0, 5.0):
        theirs = peer.FSQ(list(LEVELS), **arguments)
        result, output = compare(ours, {}, theirs, normal(3, 200, DIM, scale=scale))
        close(ours.apply({}, result.indices, method="decode"), theirs.indices_to_codes(output[1]))


@pytest.mark.parametrize("rotated", [False, True])
def test_fsq_with_codebooks_projections_and_rotation(rotated):
    theirs = peer.FSQ([5, 5, 5], dim=7, num_codebooks=2, preserve_symmetry=True, orthogonal_rotation=rotated)
    ours = FSQ((5, 5, 5), num_codebooks=2, bound="symmetric", orthogonal_rotation=rotated)
    variables = {"params": projections_of(theirs)}
    if rotated:
        variables["codebook"] = {"rotation": jnp.asarray(theirs.orthogonal_rot.numpy())}
    compare(ours, variables, theirs, normal(3, 50, 7))


def test_fsq_indices_beyond_2_to_the_24_are_not_exact_in_theirs():
    # Without their indices, since those allocate all codes.
    theirs = peer.FSQ([1000, 1000, 1000], return_indices=False, preserve_symmetry=True)
    ours = FSQ((1000, 1000, 1000), bound="symmetric", hard_clamp=True)
    code = np.array(ours.apply({}, jnp.array([493_827_157]), method="decode"))
    assert int(theirs.codes_to_indices(torch.tensor(code))[0]) != 493_827_157
    assert int(ours.apply({}, jnp.asarray(code), method="encode")[0]) == 493_827_157


def test_noise_of_theirs_is_in_units_of_the_codes():
    theirs = peer.FSQ([9, 9], preserve_symmetry=True, noise_dropout=0.999).train()
    moved = theirs.maybe_apply_noise(torch.zeros(1, 2000, 2)).abs().max()
    assert moved > 0.45  # four of the nine levels, where half a level is 0.125
    out = FSQ((9, 9), bound="symmetric", noise_dropout=0.999).apply(
        {}, jnp.zeros((2000, 2)), train=True, rngs={"quantizer": jax.random.key(0)}
    )
    assert 0.12 < float(jnp.abs(out.quantized).max()) <= 0.125


@pytest.mark.parametrize("dim", [DIM, 6])
@pytest.mark.parametrize("hard_clamp", [True, False])
def test_residual_fsq(dim, hard_clamp):
    soft = {} if hard_clamp else {"soft_clamp_input_value": 1.5}
    theirs = peer.ResidualFSQ(levels=list(LEVELS), num_quantizers=3, dim=dim, bound_hard_clamp=hard_clamp, **soft)
    template = FSQ(LEVELS) if hard_clamp else FSQ(LEVELS, hard_clamp=False)
    ours = Residual(template, 3, gradient="per_stage", soft_clamp=None if hard_clamp else 1.5)
    variables = {"params": projections_of(theirs)}
    result, output = compare(ours, variables, theirs, normal(2, 100, dim))
    close(ours.apply(variables, result.indices, method="decode"), theirs.get_output_from_indices(output[1]))


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "normal", "laplace", "cauchy"])
def test_fsp(activation, invert):
    theirs = peer.FSP(list(LEVELS), act_name=activation, need_inv_act=invert).eval()
    ours = FSP(LEVELS, activation=activation, invert=invert)
    result, output = compare(ours, {}, theirs, normal(3, 50, DIM))
    close(ours.apply({}, result.indices, method="decode"), theirs.indices_to_codes(output[1]))
    close(result.loss, output[2])


@pytest.mark.parametrize(
    ("name", "of_theirs"),
    [
        (None, "none"),
        ("variance", "var"),
        ("kurtosis", "kurt"),
        ("tanh", "var_tanh"),
        ("sigmoid", "var_sigmoid"),
        ("laplace", "var_laplace"),
    ],
)
def test_moments_of_fsp(name, of_theirs):
    theirs = peer.FSP([8, 5, 5], dim=6, vector_norm=of_theirs).eval()
    ours, variables = FSP((8, 5, 5), moments=name), {"params": projections_of(theirs)}
    z = normal(2, 60, 6, scale=2.0)
    x = torch.tensor(z, requires_grad=True)
    loss = theirs(x)[2]
    loss.backward()
    value, gradient = jax.value_and_grad(lambda z: ours.apply(variables, z, train=False).loss)(jnp.asarray(z))
    close(value, loss)
    close(gradient, x.grad, rtol=1e-4, atol=1e-7)


def test_noise_of_fsp_with_the_same_numbers(monkeypatch):
    key, z = jax.random.key(3), normal(40, 3)
    theirs = peer.FSP([8, 5, 5], quantize_rate=0.0).train()
    ours = FSP((8, 5, 5))
    drawn = []
    uniform = jax.random.uniform

    def recorded(*arguments, **options):
        drawn.append(uniform(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(jax.random, "uniform", recorded)
    out = ours.apply({}, jnp.asarray(z), train=True, rngs={"quantizer": key})
    # Ours lies in [-1/2, 1/2) of a bin, theirs in [0, 1).
    (noise,) = (np.array(x).reshape(40, 3) for x in drawn)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.tensor(noise + 0.5))
    close(out.quantized, theirs(torch.tensor(z))[0], atol=1e-5)


@pytest.mark.parametrize("codebooks", [1, 2])
def test_latent_quantize(codebooks):
    theirs = peer.LatentQuantize([5, 7, 3], dim=3 * codebooks, num_codebooks=codebooks).train()
    ours = LatentQuantizer((5, 7, 3), num_codebooks=codebooks)
    z = normal(4, 30, 3 * codebooks, scale=0.4)
    variables = ours.init(jax.random.key(0), jnp.asarray(z))
    x = torch.tensor(np.moveaxis(z, -1, 1).copy(), requires_grad=True)
    quantized, indices, loss = theirs(x)
    out = ours.apply(variables, jnp.asarray(z), train=False)
    close(out.quantized, quantized.movedim(1, -1))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.loss, loss)
    loss.backward()
    # Theirs is cut off by a straight-through sum: the values get no gradient, and that of the loss which should move
    # them goes to the input, where it undoes that of the other. Ours is from first principles.
    assert all(value.grad is None for value in theirs.values_per_latent)
    assert float(x.grad.abs().max()) < 1e-6
    of_values, of_z = jax.grad(lambda params, z: ours.apply({"params": params}, z, train=False).loss, argnums=(0, 1))(
        variables["params"], jnp.asarray(z)
    )
    assert np.abs(of_values["code_values"]).min() > 0
    close(of_z, 0.1 * 2 * (z - np.asarray(out.quantized)) / z.size, rtol=1e-3, atol=1e-7)
