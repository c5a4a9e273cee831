"""The functions below the module beside their counterparts in vector-quantize-pytorch 1.32."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax.estimators import diveq
from vqjax.functional.affine import FeatureStatistics, feature_statistics, match_statistics, update_statistics
from vqjax.functional.codebook import init_codebook, replace_codes
from vqjax.functional.kmeans import kmeans
from vqjax.functional.regularizers import assignment_entropies, orthogonality
from vqjax.functional.search import sample_codes

torch = pytest.importorskip("torch")
module = importlib.import_module("vector_quantize_pytorch.vector_quantize_pytorch")

CODES, TOKENS, DIM = 16, 64, 8


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def test_diveq_with_the_same_noise(monkeypatch):
    z, q, g = (normal(TOKENS, DIM, seed=seed) for seed in range(3))
    key = jax.random.key(1)
    noise = np.array(jax.random.normal(key, z.shape))
    monkeypatch.setattr(module.torch, "randn_like", lambda x: torch.tensor(noise))
    x, y = (torch.tensor(v, requires_grad=True) for v in (z, q))
    value = module.directional_reparam(x, y, 5e-3)
    (value * torch.tensor(g)).sum().backward()
    ours, pull = jax.vjp(lambda z, q: diveq(z, q, key=key, variance=5e-3), jnp.asarray(z), jnp.asarray(q))
    close(ours, value, atol=1e-5)
    to_z, to_q = pull(jnp.asarray(g))
    close(to_z, x.grad, rtol=1e-4, atol=1e-5)
    close(to_q, y.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_from_given_means(cosine):
    z, start = normal(TOKENS, DIM), normal(CODES, DIM, seed=1)
    if cosine:
        z, start = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, start))
    means, counts = module.kmeans(
        torch.tensor(z[None]), CODES, 5, cosine, sample_fn=lambda samples, num: torch.tensor(start[None])
    )
    state = kmeans(jax.random.key(0), jnp.asarray(z), CODES, iterations=5, unit_norm=cosine, start=jnp.asarray(start))
    close(state.codes, means[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.counts, counts[0])


def test_kmeans_leaves_an_empty_cluster_where_theirs_ends_at_the_origin(make_peer):
    z = normal(10, DIM)
    start = np.concatenate([z, np.full((6, DIM), 50.0, np.float32)])
    theirs = make_peer(start, kmeans_init=True)
    theirs._codebook.sample_fn = lambda samples, num: torch.tensor(start[None])
    theirs.eval()(torch.tensor(z[None]))
    assert float(theirs._codebook.embed[0][10:].abs().max()) == 0
    state = kmeans(jax.random.key(0), jnp.asarray(z), 16, start=jnp.asarray(start))
    np.testing.assert_array_equal(state.codes[10:], start[10:])
    close(state.codes[:10], theirs._codebook.embed[0][:10], rtol=1e-4, atol=1e-4)


def test_orthogonality():
    for codes in (normal(CODES, DIM), normal(4, DIM)):
        close(orthogonality(jnp.asarray(codes)), module.orthogonal_loss_fn(torch.tensor(codes[None])))


def test_orthogonality_of_active_codes(make_peer):
    codes, z = normal(CODES, DIM, seed=1), normal(1, 6, DIM)
    theirs = make_peer(codes, orthogonal_reg_weight=1.0, orthogonal_reg_active_codes_only=True, ema_update=False)
    _, indices, _, breakdown = theirs(torch.tensor(z), return_loss_breakdown=True)
    active = jnp.zeros(CODES, bool).at[jnp.asarray(indices.numpy().ravel())].set(True)
    close(orthogonality(jnp.asarray(codes), active), breakdown.orthogonal_reg)


def test_diversity_is_theirs_where_they_average_over_tokens(make_peer):
    codes, z = normal(CODES, DIM, seed=1), normal(TOKENS, 1, DIM)
    theirs = make_peer(codes, codebook_diversity_loss_weight=1.0, codebook_diversity_temperature=1.0)
    breakdown = theirs(torch.tensor(z), return_loss_breakdown=True, freeze_codebook=True)[3]
    per_token, of_batch = assignment_entropies(jnp.asarray(z), jnp.asarray(codes), inverse_temperature=1.0)
    close(-of_batch, breakdown.codebook_diversity)
    # A sequence of one batch entry is not averaged there, so the same tokens give another loss: that per token.
    breakdown = theirs(torch.tensor(z.swapaxes(0, 1)), return_loss_breakdown=True, freeze_codebook=True)[3]
    close(-per_token, breakdown.codebook_diversity, rtol=1e-4)
    assert float(of_batch) > float(per_token)


def test_running_affine_over_three_steps_in_their_order(make_peer):
    codes = normal(CODES, DIM, seed=1)
    theirs = make_peer(codes, affine_param=True, decay=0.8)
    tokens = codes_statistics = None
    for step in range(3):
        z = 2 * normal(TOKENS, DIM, seed=step) + 1
        stored = jnp.asarray(theirs._codebook.embed[0].numpy().copy())
        quantized, indices, _ = theirs(torch.tensor(z[None]))
        new, new_codes = feature_statistics(jnp.asarray(z)), feature_statistics(stored)
        tokens = new if tokens is None else update_statistics(tokens, new, 0.99)
        codes_statistics = new_codes if step == 0 else update_statistics(codes_statistics, new_codes, 0.9)
        close(tokens.mean, theirs._codebook.batch_mean[0, 0])
        close(tokens.variance, theirs._codebook.batch_variance[0, 0])
        close(codes_statistics.variance, theirs._codebook.codebook_variance[0, 0])
        moved = match_statistics(stored, codes_statistics, FeatureStatistics(*tokens))
        close(moved[jnp.asarray(indices[0].numpy())], quantized[0], rtol=1e-4, atol=1e-5)


def test_expired_codes_become_the_sampled_tokens(make_peer):
    codes, z = normal(CODES, DIM, seed=1), normal(1, TOKENS, DIM)
    theirs = make_peer(codes, threshold_ema_dead_code=2, decay=0.8)
    sampled = []
    theirs._codebook.replace_sample_fn = lambda samples, num: sampled.append(samples[:, :num]) or sampled[-1]
    _, indices, _ = theirs(torch.tensor(z))
    # A moving average of 0.8 * 1 + 0.2 * n stays below two with up to five tokens.
    dead = np.bincount(indices[0], minlength=CODES) <= 5
    close(theirs._codebook.embed[0][dead], sampled[0][0])
    # Ours draws its own tokens, one per code, and starts the replaced codes with nothing behind them.
    state = init_codebook(jnp.asarray(codes), "one_token")
    replaced = replace_codes(jax.random.key(0), state, jnp.asarray(dead), jnp.asarray(z[0]))
    rows = {tuple(row) for row in z[0].tolist()}
    assert all(tuple(row) in rows for row in np.asarray(replaced.codes)[dead].tolist())
    np.testing.assert_array_equal(replaced.codes[~dead], codes[~dead])
    assert float(jnp.sum(replaced.counts[dead])) == 0


def test_sampled_codes_come_as_often_as_theirs():
    codes, count = normal(6, 2, seed=1), 20_000
    z = np.zeros((count, 2), np.float32)
    logits = -module.cdist(torch.tensor(z[None]), torch.tensor(codes[None]))[0]
    theirs, _ = module.gumbel_sample(logits, temperature=0.5, stochastic=True)
    ours = sample_codes(jax.random.key(0), jnp.asarray(z), jnp.asarray(codes), temperature=0.5)
    shares = [np.bincount(np.asarray(x), minlength=6) / count for x in (theirs, ours)]
    np.testing.assert_allclose(*shares, atol=0.015)
