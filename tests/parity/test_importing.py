"""A quantizer trained with vector-quantize-pytorch goes on training here as it would have there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import importing

torch = pytest.importorskip("torch")
vector_quantize_pytorch = pytest.importorskip("vector_quantize_pytorch")

CODES, DIM, BATCH = 16, 6, (4, 32)
DECAY, EPSILON = 0.8, 1e-5


def batches(count, features, seed):
    return np.random.default_rng(seed).normal(size=(count, *BATCH, features)).astype(np.float32)


def trained_there(features, **arguments):
    torch.manual_seed(0)
    module = vector_quantize_pytorch.VectorQuantize(
        dim=features, codebook_size=CODES, decay=DECAY, eps=EPSILON, **arguments
    )
    module.train()
    for z in batches(5, features, seed=1):
        module(torch.from_numpy(z))
    return module


def imported(module, features, **arguments):
    """The module here, from its state and the arguments of its constructor."""
    config = {"dim": features, "codebook_size": CODES, "decay": DECAY, "eps": EPSILON, **arguments}
    return importing.vector_quantize_pytorch(state_of(module), config)


def state_of(module):
    return {key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}


def assert_same_codebook(variables, state, separate=False):
    names = {"codes": "embed", "counts": "cluster_size", "sums": "embed_avg"}
    for ours, theirs in names.items():
        expected = state[f"_codebook.{theirs}"]
        expected = expected if separate else expected[0]
        np.testing.assert_allclose(variables["codebook"][ours], expected, rtol=1e-5, atol=1e-5, err_msg=ours)


LAYOUTS = {
    "euclidean": ({}, DIM),
    "cosine": ({"use_cosine_sim": True}, DIM),
    "projection": ({"codebook_dim": DIM}, 10),
    "shared heads": ({"heads": 2, "codebook_dim": DIM}, 2 * DIM),
    "separate heads": ({"heads": 2, "codebook_dim": DIM, "separate_codebook_per_head": True}, 10),
    "separate cosine heads": (
        {"heads": 2, "codebook_dim": DIM, "separate_codebook_per_head": True, "use_cosine_sim": True},
        2 * DIM,
    ),
}


@pytest.mark.parametrize(("arguments", "features"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_training_continues_here_as_it_would_have_there(arguments, features):
    module = trained_there(features, **arguments)
    separate = arguments.get("separate_codebook_per_head", False)
    vq, variables = imported(module, features, **arguments)
    assert_same_codebook(variables, state_of(module), separate)
    step = jax.jit(lambda variables, z: vq.apply(variables, z, train=True, mutable=["codebook"]))
    for z in batches(3, features, seed=2):
        quantized, indices, loss = module(torch.from_numpy(z))
        out, updates = step(variables, z)
        variables = variables | updates
        np.testing.assert_array_equal(out.indices, indices.numpy())
        np.testing.assert_allclose(out.quantized, quantized.detach().numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out.loss, loss.item(), rtol=1e-5)
        assert_same_codebook(variables, state_of(module), separate)


def test_a_learned_codebook_has_the_same_loss_and_gradient():
    module = trained_there(DIM, learnable_codebook=True, ema_update=False, rotation_trick=False)
    vq, variables = imported(module, DIM, learnable_codebook=True, ema_update=False, rotation_trick=False)
    z = batches(1, DIM, seed=2)[0]
    loss = module(torch.from_numpy(z))[2]
    loss.backward()

    def objective(params):
        out = vq.apply({**variables, "params": params}, jnp.asarray(z), train=False)
        return out.loss, out

    gradient, out = jax.grad(objective, has_aux=True)(variables["params"])
    np.testing.assert_allclose(gradient["codes"], module._codebook.embed.grad.numpy()[0], rtol=1e-5, atol=1e-7)
    # There, one mean square stands for both terms; here they are separate, equal in value, and added.
    np.testing.assert_allclose(out.loss, 2 * loss.item(), rtol=1e-5)


def test_affine_statistics_arrive():
    module = trained_there(DIM, affine_param=True)
    vq, variables = imported(module, DIM, affine_param=True)
    z = batches(1, DIM, seed=2)[0]
    out = vq.apply(variables, jnp.asarray(z), train=False)
    # There, evaluation moves the statistics of the tokens before the lookup, by 0.01 of the new batch (a defect);
    # with that undone, the lookup is the same.
    module.eval()
    module._codebook.affine_param_batch_decay = 1.0
    quantized, indices, _ = module(torch.from_numpy(z))
    np.testing.assert_array_equal(out.indices, indices.numpy())
    np.testing.assert_allclose(out.quantized, quantized.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_codebook_that_waits_for_kmeans_is_refused():
    module = vector_quantize_pytorch.VectorQuantize(dim=DIM, codebook_size=CODES, kmeans_init=True)
    with pytest.raises(ValueError, match="k-means"):
        imported(module, DIM)


def test_layer_norm_and_bridge_are_refused():
    normalized = vector_quantize_pytorch.VectorQuantize(
        dim=DIM, codebook_size=CODES, codebook_dim=3, layernorm_after_project_in=True
    )
    bridged = vector_quantize_pytorch.VectorQuantize(dim=DIM, codebook_size=CODES, vq_bridge=torch.nn.Linear(DIM, DIM))
    with pytest.raises(ValueError, match="layernorm_after_project_in"):
        imported(normalized, DIM, codebook_dim=3)
    with pytest.raises(ValueError, match="vq_bridge"):
        imported(bridged, DIM)
