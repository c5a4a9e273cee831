"""VectorQuantizer beside vqtorch, where its source is on the path (it is on no package index)."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax import VectorQuantizer
from vqjax.quantizers import LearnedAffine
from vqjax.quantizers.weightings import vqtorch as vqtorch_weights

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    vqtorch_nn = pytest.importorskip(
        "vqtorch.nn", reason="comparisons with vqtorch need its source, and string-color, on PYTHONPATH"
    )

CODES, DIM = 8, 4


@pytest.mark.parametrize("nu", [0.0, 0.3])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_loss_value_and_every_gradient(nu, groups):
    z, g, codes = normal(2, 30, DIM), normal(2, 30, DIM, seed=1), normal(CODES, DIM, seed=2)
    theirs = vqtorch_nn.VectorQuant(
        DIM, CODES, beta=0.75, sync_nu=nu, affine_lr=2.0 if groups else 0.0, affine_groups=groups or 1, dim=-1
    ).train()
    affine = {}
    with torch.no_grad():
        theirs.codebook.weight.copy_(torch.tensor(codes))
        if groups:
            affine = {"scale": 0.1 * normal(groups, DIM, seed=3), "shift": 0.1 * normal(groups, DIM, seed=4)}
            theirs.affine_transform.scale.copy_(torch.tensor(affine["scale"]))
            theirs.affine_transform.bias.copy_(torch.tensor(affine["shift"]))
    x = torch.tensor(z, requires_grad=True)
    quantized, returned = theirs(x)
    ((quantized * torch.tensor(g)).sum() + returned["loss"]).backward()

    vq = VectorQuantizer(
        num_codes=CODES,
        estimator="straight_through",
        **vqtorch_weights(0.75, sync_nu=nu, transform=LearnedAffine(2.0, groups) if groups else None),
    )
    variables = vq.init(jax.random.key(0), jnp.asarray(z))
    params = {"codes": jnp.asarray(codes)} | ({"codebook_transform": affine} if groups else {})
    params = jax.tree.map(jnp.asarray, params)

    def total(params, z):
        out = vq.apply(variables | {"params": params}, z, train=False)
        return jnp.sum(out.quantized * g) + out.loss, out

    gradients, out = jax.grad(total, argnums=(0, 1), has_aux=True)(params, jnp.asarray(z))
    np.testing.assert_array_equal(out.indices, returned["q"].reshape(2, 30))
    pairs = [
        (out.quantized, quantized),
        (out.loss, returned["loss"]),
        (gradients[1], x.grad),
        (gradients[0]["codes"], theirs.codebook.weight.grad),
    ]
    if groups:
        moved = gradients[0]["codebook_transform"]
        pairs += [
            (moved["scale"], theirs.affine_transform.scale.grad),
            (moved["shift"], theirs.affine_transform.bias.grad),
        ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
