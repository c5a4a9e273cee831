"""MultiScaleVQ beside HierarchicalVQ of vector-quantize-pytorch 1.32, from the same codes and convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax import VectorQuantizer
from vqjax.quantizers.multi_scale import MultiScaleVQ

torch = pytest.importorskip("torch")

DIM, CODES, SPACES = 4, 16, {1: (9,), 2: (8, 6), 3: (4, 4, 4)}


def close(actual, expected, atol=1e-5):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=atol)


def make_theirs(scales, spatial_dims, **arguments):
    from vector_quantize_pytorch import HierarchicalVQ

    layout = {"accept_image_fmap": spatial_dims == 2, "accept_3d_fmap": spatial_dims == 3, "channel_first": False}
    settings = {"kmeans_init": False, "threshold_ema_dead_code": 0} | layout | arguments
    theirs = HierarchicalVQ(dim=DIM, codebook_size=CODES, scales=scales, **settings).train()
    quantizers = [theirs.vq] if theirs.vq is not None else theirs.vqs
    for number, vq in enumerate(quantizers):
        # In their training mode, where losses and gradients are, each scale would move the codes of the next.
        vq.freeze_codebook = True
        with torch.no_grad():
            vq._codebook.embed.copy_(torch.tensor(normal(1, CODES, DIM, seed=number + 1)))
    return theirs


def make_ours(theirs, scales, spatial_dims, rotation=False, **arguments):
    estimator = "rotation" if rotation else "straight_through"
    template = VectorQuantizer(CODES, estimator=estimator, commitment_weight=1.0)
    vq = MultiScaleVQ(template, scales, spatial_dims, gradient="per_scale", **arguments)
    variables = jax.jit(vq.init)(jax.random.key(0), jnp.zeros((1, *SPACES[spatial_dims], DIM)))
    convolutions = [theirs.phi_shared] if theirs.phi_shared is not None else theirs.phi_levels
    params = {}
    for number, phi in enumerate(convolutions):
        kernel = np.moveaxis(phi.conv.weight.detach().numpy(), (0, 1), (-1, -2))
        conv = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(phi.conv.bias.detach().numpy())}
        params[f"phi_{number}"] = {"convolution": conv}
    codebook = {}
    for name, state in variables["codebook"].items():
        codebook[name] = state | {"codes": jnp.asarray(normal(CODES, DIM, seed=int(name.split("_")[1]) + 1))}
    assert jax.tree.structure(params) == jax.tree.structure(variables["params"])
    return vq, {"params": params, "codebook": codebook}


def compare(scales, spatial_dims, mask=None, rotation=False, shared=True, num_phi=1):
    theirs = make_theirs(
        scales, spatial_dims, rotation_trick=rotation, shared_codebook=shared, share_quant_resi=num_phi or 0
    )
    vq, variables = make_ours(theirs, scales, spatial_dims, rotation, shared_codebook=shared, num_phi=num_phi)
    z, g = (normal(2, *SPACES[spatial_dims], DIM, seed=seed) for seed in (10, 11))
    x = torch.tensor(z, requires_grad=True)
    quantized, indices, loss = theirs(x, mask=None if mask is None else torch.tensor(mask))
    (torch.sum(quantized * torch.tensor(g)) + 10 * loss).backward()

    @jax.jit
    def run(z):
        out = vq.apply(variables, z, None if mask is None else jnp.asarray(mask), train=False)
        return jnp.sum(out.quantized * g) + 10 * out.loss, out

    of_z, out = jax.grad(run, has_aux=True)(jnp.asarray(z))
    for ours, expected in zip(vq.split(out.indices), indices, strict=True):
        np.testing.assert_array_equal(ours, expected)
    close(out.quantized, quantized)
    close(out.loss, loss)
    close(of_z, x.grad, atol=1e-5 * float(x.grad.abs().max()))
    return vq, variables, theirs, out, indices


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_indices_reconstruction_loss_and_gradient(spatial_dims, rotation):
    compare((1, 2, 4), spatial_dims, rotation=rotation)


def test_a_scale_of_the_size_of_the_input_and_one_beyond():
    compare(((2, 1), (8, 6), (9, 7)), 2)


@pytest.mark.parametrize("num_phi", [None, 2, 3])
def test_a_codebook_per_scale_and_several_convolutions(num_phi):
    compare((1, 2, 3, 4), 2, shared=False, num_phi=num_phi)


@pytest.mark.parametrize("spatial_dims", [1, 2])
def test_a_mask(spatial_dims):
    mask = np.random.default_rng(0).uniform(size=(2, *SPACES[spatial_dims])) < 0.6
    mask[0, :3] = False
    _, _, _, out, _ = compare((1, 2, 4), spatial_dims, mask=mask)
    assert bool(jnp.any(out.indices == -1))


def test_decode_at_another_size_and_at_that_of_the_last_scale():
    vq, variables, theirs, out, indices = compare((1, 2, 4), 2)
    decode = lambda **arguments: vq.apply(variables, out.indices, method="decode", **arguments)  # noqa: E731
    close(decode(), theirs.get_output_from_indices(indices))
    close(decode(shape=(8, 6)), theirs.get_output_from_indices(indices, full_shape=(8, 6)))


def test_defect_16_their_clusters_see_the_coarsest_scale_only():
    z = normal(4, 8, 6, DIM, seed=10)
    theirs = make_theirs((1, 2, 4), 2, kmeans_init=True)
    theirs.vq.freeze_codebook = False
    theirs(torch.tensor(z))
    vq = MultiScaleVQ(VectorQuantizer(CODES), (1, 2, 4))
    variables = jax.jit(vq.init)(jax.random.key(0), jnp.asarray(z))
    key = {"quantizer": jax.random.key(1)}
    _, started = vq.apply(variables, jnp.asarray(z), method="kmeans_init", mutable=["codebook"], rngs=key)
    assert len(np.unique(theirs.vq._codebook.embed[0].numpy(), axis=0)) < CODES
    assert len(np.unique(started["codebook"]["stages_0"]["codes"], axis=0)) == CODES
