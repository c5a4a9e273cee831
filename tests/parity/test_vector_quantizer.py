"""VectorQuantizer beside vector-quantize-pytorch 1.32: the same state and inputs in, the same numbers out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal, unit
from vqjax import EMACodebook, GradientCodebook, VectorQuantizer

torch = pytest.importorskip("torch")

CODES, TOKENS = 16, 64
PEER_EMA = EMACodebook(decay=0.8, smoothing=1e-5, start="one_token")


def ours(codes, **arguments):
    codes = jnp.asarray(codes)
    dim = codes.shape[-1] * arguments.get("heads", 1)
    vq = VectorQuantizer(num_codes=codes.shape[-2], commitment_weight=1.0, **arguments)
    variables = vq.init(jax.random.key(0), jnp.zeros((1, dim)))
    if isinstance(vq.codebook, GradientCodebook):
        return vq, variables | {"params": variables["params"] | {"codes": codes}}
    return vq, variables | {"codebook": variables["codebook"] | {"codes": codes, "sums": codes}}


def train(vq, variables, z, mask=None, **arguments):
    out, changed = vq.apply(variables, z, mask, train=True, mutable=["codebook"], **arguments)
    return out, variables | changed


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(("dim", "scale"), [(2, 1.0), (32, 0.1), (256, 3.0)])
def test_moving_averages_over_four_steps(make_peer, distance, dim, scale):
    codes = normal(CODES, dim, seed=1)
    codes = unit(codes) if distance == "cosine" else codes
    theirs = make_peer(codes, decay=0.8, use_cosine_sim=distance == "cosine")
    vq, variables = ours(codes, distance=distance, codebook=PEER_EMA)
    for step in range(4):
        z = normal(2, TOKENS, dim, seed=10 + step, scale=scale)
        quantized, indices, loss = theirs(torch.tensor(z))
        out, variables = train(vq, variables, jnp.asarray(z))
        np.testing.assert_array_equal(out.indices, indices)
        close(out.quantized, quantized)
        close(out.loss, loss)
        state = theirs._codebook
        close(variables["codebook"]["counts"], state.cluster_size[0])
        close(variables["codebook"]["sums"], state.embed_avg[0], atol=1e-5)
        close(variables["codebook"]["codes"], state.embed[0], atol=1e-5)


@pytest.mark.parametrize("dim", [2, 32, 256])
@pytest.mark.parametrize("estimator", ["rotation", "straight_through"])
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_value_and_gradient_of_the_estimators(make_peer, dim, estimator, scale):
    codes, z, g = normal(CODES, dim, seed=1, scale=scale), normal(1, TOKENS, dim), normal(1, TOKENS, dim, seed=2)
    theirs = make_peer(codes, rotation_trick=estimator == "rotation", commitment_weight=0.0)
    vq, variables = ours(codes, estimator=estimator, codebook=PEER_EMA)
    x = torch.tensor(z, requires_grad=True)
    quantized, _, _ = theirs(x)
    (quantized * torch.tensor(g)).sum().backward()
    value, pull = jax.vjp(lambda z: vq.apply(variables, z, train=False).quantized, jnp.asarray(z))
    close(value, quantized, atol=1e-5)
    close(pull(jnp.asarray(g))[0], x.grad, atol=1e-5 * float(np.abs(x.grad).max()))
    # Theirs is the code up to rounding, ours bit for bit.
    np.testing.assert_array_equal(value, codes[np.asarray(vq.apply(variables, jnp.asarray(z), train=False).indices)])


def test_update_weights_per_code(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(1, TOKENS, 8)
    weights = np.linspace(0, 1, CODES).astype(np.float32)
    theirs = make_peer(codes, decay=0.8)
    theirs(torch.tensor(z), ema_update_weight=torch.tensor(weights))
    vq, variables = ours(codes, codebook=PEER_EMA)
    _, variables = train(vq, variables, jnp.asarray(z), code_update_weights=jnp.asarray(weights))
    close(variables["codebook"]["counts"], theirs._codebook.cluster_size[0])
    close(variables["codebook"]["codes"][1:], theirs._codebook.embed[0][1:])
    # Ours freezes a code of weight zero; theirs is still moved by the smoothing of the others.
    np.testing.assert_array_equal(variables["codebook"]["codes"][0], codes[0])
    assert np.abs(theirs._codebook.embed[0][0].numpy() - codes[0]).max() > 0


def test_accumulated_statistics_are_applied_once(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(3, TOKENS, 8)
    theirs = make_peer(codes, decay=0.8)
    vq, variables = ours(codes, codebook=dataclasses.replace(PEER_EMA, accumulation_steps=3))
    for step in range(3):
        theirs(torch.tensor(z[step : step + 1]), accum_ema_update=step < 2)
        _, variables = train(vq, variables, jnp.asarray(z[step : step + 1]))
        if step < 2:
            np.testing.assert_array_equal(variables["codebook"]["codes"], codes)
    close(variables["codebook"]["counts"], theirs._codebook.cluster_size[0])
    close(variables["codebook"]["codes"], theirs._codebook.embed[0])


def test_learned_codebook_loss_and_gradient(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(1, TOKENS, 8)
    theirs = make_peer(codes, learnable_codebook=True, ema_update=False, commitment_weight=1.0)
    with torch.no_grad():
        theirs._codebook.embed.copy_(torch.tensor(codes[None]))
    x = torch.tensor(z, requires_grad=True)
    _, _, loss = theirs(x)
    loss.backward()
    vq, variables = ours(codes, codebook="gradient")

    def total(params, z):
        return vq.apply(variables | {"params": params}, z, train=False).loss

    of_params, of_z = jax.grad(total, argnums=(0, 1))(variables["params"], jnp.asarray(z))
    # Their one weight multiplies one squared error that reaches both sides; ours are two terms.
    close(total(variables["params"], jnp.asarray(z)), 2 * loss)
    close(of_params["codes"], theirs._codebook.embed.grad[0])
    close(of_z, x.grad)


@pytest.mark.parametrize("separate", [False, True])
def test_heads(make_peer, separate):
    codes = normal(2, CODES, 4, seed=1) if separate else normal(CODES, 4, seed=1)
    z = normal(2, TOKENS, 8)
    theirs = make_peer(codes, dim=8, codebook_dim=4, heads=2, separate_codebook_per_head=separate, decay=0.8)
    quantized, indices, loss = theirs(torch.tensor(z))
    vq, variables = ours(codes, heads=2, separate_codebooks=separate, codebook=PEER_EMA)
    out, variables = train(vq, variables, jnp.asarray(z))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized)
    close(out.loss, loss)
    updated = theirs._codebook.embed if separate else theirs._codebook.embed[0]
    close(variables["codebook"]["codes"], updated)


def test_projection(make_peer):
    codes, z = normal(CODES, 4, seed=1), normal(2, TOKENS, 12)
    theirs = make_peer(codes, dim=12, codebook_dim=4)
    vq = VectorQuantizer(num_codes=CODES, codebook_dim=4, commitment_weight=1.0)
    variables = vq.init(jax.random.key(0), jnp.zeros((1, 12)))
    params = {}
    for name in ("project_in", "project_out"):
        linear = getattr(theirs, name)
        params |= {f"{name}_kernel": linear.weight.detach().numpy().T, f"{name}_bias": linear.bias.detach().numpy()}
    variables = {"params": params, "codebook": variables["codebook"] | {"codes": codes}}
    variables = jax.tree.map(jnp.asarray, variables)
    quantized, indices, loss = theirs(torch.tensor(z))
    out = vq.apply(variables, jnp.asarray(z), train=False)
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized, atol=1e-5)
    close(out.loss, loss)


def test_top_k(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(1, TOKENS, 8)
    _, indices, _ = make_peer(codes)(torch.tensor(z), topk=3)
    vq, variables = ours(codes)
    np.testing.assert_array_equal(vq.apply(variables, jnp.asarray(z), method="encode", top_k=3), indices)


def test_masked_commitment_differs_where_theirs_compares_with_the_raw_input(make_peer):
    codes, z = unit(normal(CODES, 8, seed=1)), normal(1, TOKENS, 8, scale=10.0)
    mask = np.ones((1, TOKENS), bool)
    theirs = make_peer(codes, use_cosine_sim=True)
    _, _, right = theirs(torch.tensor(z), freeze_codebook=True)
    _, _, wrong = theirs(torch.tensor(z), mask=torch.tensor(mask), freeze_codebook=True)
    vq, variables = ours(codes, distance="cosine")
    masked, unmasked = (vq.apply(variables, jnp.asarray(z), m, train=False).loss for m in (jnp.asarray(mask), None))
    close(unmasked, right)
    close(masked, right)
    assert float(wrong) > 10 * float(right)


def test_a_mask_changes_statistics_as_theirs(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(2, TOKENS, 8)
    mask = np.random.default_rng(0).uniform(size=(2, TOKENS)) < 0.5
    theirs = make_peer(codes, decay=0.8)
    quantized, indices, loss = theirs(torch.tensor(z), mask=torch.tensor(mask))
    vq, variables = ours(codes, codebook=PEER_EMA)
    out, variables = train(vq, variables, jnp.asarray(z), jnp.asarray(mask))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized)
    close(out.loss, loss)
    close(variables["codebook"]["codes"], theirs._codebook.embed[0])


def test_synchronization_reaches_the_codes_where_theirs_does_not(make_peer):
    codes, z = normal(CODES, 8, seed=1), normal(1, TOKENS, 8)
    theirs = make_peer(
        codes, learnable_codebook=True, ema_update=False, sync_update_v=0.5, commitment_weight=0.0, rotation_trick=False
    )
    x = torch.tensor(z, requires_grad=True)
    theirs(x)[0].sum().backward()
    assert theirs._codebook.embed.grad is None
    close(np.full_like(z, 1.5), x.grad)
    vq, variables = ours(codes, codebook=GradientCodebook(weight=0.0, sync_nu=0.5), estimator="straight_through")
    run = lambda params, z: jnp.sum(vq.apply(variables | {"params": params}, z, train=False).quantized)  # noqa: E731
    of_params, of_z = jax.grad(run, argnums=(0, 1))(variables["params"], jnp.asarray(z))
    counts = np.bincount(np.asarray(vq.apply(variables, jnp.asarray(z), train=False).indices).ravel(), minlength=CODES)
    close(of_z, np.ones_like(z))
    close(of_params["codes"], 0.5 * np.repeat(counts[:, None], 8, 1))
