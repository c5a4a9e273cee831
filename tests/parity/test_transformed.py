"""SimVQ, RandomProjectionQuantizer and the poolings beside their counterparts in PyTorch."""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax.functional.pooling import max_vector_pool, softmax_vector_pool
from vqjax.quantizers import FrozenCodebook, LinearTransform, RandomProjectionQuantizer, SimVQ

torch = pytest.importorskip("torch")
peer = importlib.import_module("vector_quantize_pytorch")

CODES, TOKENS, DIM = 16, 64, 8


def close(actual, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(np.asarray(actual), expected.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("estimator", ["rotation", "straight_through"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_simvq_with_every_gradient(estimator, weight):
    z, g = normal(2, TOKENS, DIM), normal(2, TOKENS, DIM, seed=1)
    theirs = peer.SimVQ(
        dim=DIM, codebook_size=CODES, rotation_trick=estimator == "rotation", commitment_weight=weight
    ).eval()
    x = torch.tensor(z, requires_grad=True)
    quantized, indices, loss = theirs(x)
    ((quantized * torch.tensor(g)).sum() + loss).backward()

    codebook = FrozenCodebook(transform=LinearTransform(), weight=weight)
    vq = SimVQ(CODES, estimator=estimator, commitment_weight=0.25 * weight, codebook=codebook)
    kernel = jnp.asarray(theirs.code_transform.weight.detach().numpy().T)
    codes = jnp.asarray(theirs.frozen_codebook.numpy())

    def total(kernel, z):
        params = {"codebook_transform": {"linear": {"kernel": kernel}}}
        out = vq.apply({"params": params, "codebook": {"codes": codes}}, z, train=False)
        return jnp.sum(out.quantized * g) + out.loss, out

    (of_kernel, of_z), out = jax.grad(total, argnums=(0, 1), has_aux=True)(kernel, jnp.asarray(z))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized)
    close(out.loss, loss)
    close(of_z, x.grad)
    close(of_kernel, theirs.code_transform.weight.grad.T)


@pytest.mark.parametrize("num_codebooks", [1, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_random_projection_labels(num_codebooks, standardize):
    z, code_dim = 3 * normal(2, TOKENS, DIM) + 1, 6
    theirs = peer.RandomProjectionQuantizer(
        dim=DIM, codebook_size=CODES, codebook_dim=code_dim, num_codebooks=num_codebooks, norm=standardize
    )
    if num_codebooks > 1:
        # With several codebooks theirs is something else: a linear layer, with parameters, mixes the projections and
        # blows each one up to num_codebooks * codebook_dim features. Here is what it sets out to build.
        assert theirs.vq.project_in.weight.shape == (num_codebooks**2 * code_dim, num_codebooks * code_dim)
        assert theirs.vq.project_in.weight.requires_grad
        arguments = {"heads": num_codebooks, "use_cosine_sim": True, "separate_codebook_per_head": True}
        theirs.vq = peer.VectorQuantize(num_codebooks * code_dim, CODES, codebook_dim=code_dim, **arguments)
    codes = jnp.asarray(theirs.vq._codebook.embed.numpy())
    codebook = {
        "projections": jnp.asarray(theirs.rand_projs.numpy()),
        "quantizer": {"codes": codes if num_codebooks > 1 else codes[0]},
    }
    vq = RandomProjectionQuantizer(CODES, code_dim, num_codebooks, standardize)
    indices = vq.apply({"codebook": codebook}, jnp.asarray(z), method="encode")
    np.testing.assert_array_equal(indices, theirs(torch.tensor(z)))


@pytest.fixture
def pool():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "vqtorch.nn.pool", reason="comparisons with vqtorch need its source, and string-color, on PYTHONPATH"
        )


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 1)])
@pytest.mark.parametrize("kind", ["max", "softmax"])
def test_pooling_without_padding(pool, kind, window, stride):
    x, g = normal(2, 7, 6, 3), normal(2, 1, 1, 3, seed=1)
    theirs, ours = {
        "max": (pool.MaxVecPool2d, max_vector_pool),
        "softmax": (pool.SoftMaxVecPool2d, softmax_vector_pool),
    }[kind]
    y = torch.tensor(x, requires_grad=True)
    pooled = theirs(window, stride, padding=0)(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (pooled * torch.tensor(g)).sum().backward()
    value, pull = jax.vjp(lambda x: ours(x, window, stride), jnp.asarray(x))
    close(value, pooled)
    close(pull(jnp.broadcast_to(jnp.asarray(g), value.shape))[0], y.grad)


def test_where_the_poolings_of_the_peer_are_wrong(pool):
    ones = torch.ones(1, 1, 4, 4)
    # The zeros of the padding have a share in the softmax: a mean of ones is less than one.
    corner = pool.SoftMaxVecPool2d(3, 1, padding=1)(ones)[0, 0, 0, 0]
    assert float(corner) == pytest.approx(4 * np.e / (4 * np.e + 5))
    assert float(softmax_vector_pool(jnp.ones((4, 4, 1)), 3, 1, 1)[0, 0, 0]) == pytest.approx(1.0)
    # Its output size takes no account of dilation, which leaves another number of windows than it counted.
    with pytest.raises(RuntimeError, match="shape"):
        pool.MaxVecPool2d(2, 1, padding=0, dilation=2)(ones)
    assert max_vector_pool(jnp.ones((4, 4, 1)), 2, 1, 0, 2).shape == (2, 2, 1)
