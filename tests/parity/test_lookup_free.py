"""LFQ, alone and in Residual, BSQ and BinaryMapper beside vector-quantize-pytorch 1.32: same inputs, same numbers."""

import functools
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from helpers.arrays import normal
from vqjax.functional.binary import bit_entropies
from vqjax.quantizers.binary import BSQ, LFQ, BinaryMapper
from vqjax.quantizers.residual import Residual

torch = pytest.importorskip("torch")
peer = pytest.importorskip("vector_quantize_pytorch")

DIM, CLAMP = 6, 1e-5
SHAPE = (3, 20)
KEY = jax.random.key(0)
PLAIN = LFQ(DIM, inverse_temperature=1.0, smallest_probability=CLAMP)
# Compiling takes most of the time of these tests.
clamped_entropies = jax.jit(functools.partial(bit_entropies, smallest_probability=CLAMP))
exact_entropies = jax.jit(bit_entropies)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def projections_of(theirs, of=lambda tensor: tensor):
    """Theirs keep a kernel with its output axis first."""
    params = {}
    for name in ("project_in", "project_out"):
        layer = getattr(theirs, name)
        if hasattr(layer, "weight"):
            params |= {f"{name}_kernel": of(layer.weight).T, f"{name}_bias": of(layer.bias)}
    return {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}


def state_of(theirs):
    rotated = getattr(theirs, "orthogonal_rotation", False)
    return {"codebook": {"rotation": jnp.asarray(theirs.orthogonal_rot.numpy())}} if rotated else {}


@functools.partial(jax.jit, static_argnames=("module", "train"))
def run(module, z, mask=None, *, train=True, key=KEY):
    return module.apply({}, z, mask, train=train, rngs={"quantizer": key})


@functools.partial(jax.jit, static_argnames="module")
def decode(module, params, state, indices):
    return module.apply({"params": params} | state, indices, method="decode")


@functools.partial(jax.jit, static_argnames="module")
def ours_with_gradients(module, params, state, z, weights, mask):
    def loss(params, z):
        out = module.apply({"params": params} | state, z, mask, train=True, rngs={"quantizer": KEY})
        return jnp.sum(out.quantized * weights) + 50 * out.loss, out

    gradients, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    return out, gradients


def compare(ours, theirs, z, *, mask=None, rtol=1e-5, **arguments):
    """Values, indices, loss, and gradients of everything; returns both outputs."""
    theirs.train()
    x = torch.tensor(z, requires_grad=True)
    theirs_mask = None if mask is None else torch.tensor(mask)
    output = theirs(x, mask=theirs_mask, **arguments)
    quantized, indices, losses = output[0] if arguments.get("return_loss_breakdown") else output
    weights = normal(*quantized.shape, seed=9)
    if mask is not None:
        weights *= mask[..., None]
    ((quantized * torch.tensor(weights)).sum() + 50 * losses.sum()).backward()
    params, state = projections_of(theirs), state_of(theirs)
    our_mask = None if mask is None else jnp.asarray(mask)
    out, gradients = ours_with_gradients(ours, params, state, jnp.asarray(z), jnp.asarray(weights), our_mask)
    if mask is None:
        np.testing.assert_array_equal(out.indices, indices)
        close(out.quantized, quantized)
    else:
        np.testing.assert_array_equal(out.indices[mask], indices.numpy()[mask])
        close(out.quantized[mask], quantized.detach().numpy()[mask])
    close(out.loss, losses.sum(), rtol=rtol)
    close(gradients[1], x.grad, rtol=20 * rtol, atol=1e-4)
    for name, expected in projections_of(theirs, of=lambda tensor: tensor.grad).items():
        close(gradients[0][name], expected, rtol=20 * rtol, atol=1e-3)
    return out, output


def compare_with_terms(ours, theirs, z, **arguments):
    out, (_, terms) = compare(
        ours, theirs, z, inv_temperature=ours.inverse_temperature, return_loss_breakdown=True, **arguments
    )
    close(out.metrics["token_entropy"], terms.per_sample_entropy)
    close(out.metrics["batch_entropy"], terms.batch_entropy)
    if ours.commitment_weight > 0:  # They do not measure it otherwise.
        close(out.metrics["commitment_loss"], terms.commitment)
    return out


def check_evaluation(ours, theirs, z, out):
    """What theirs returns in evaluation, and decodes, is what ours returns in training."""
    quantized, indices, loss = theirs.eval()(torch.tensor(z))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized)
    decoded = getattr(theirs, "indices_to_codes", None) or theirs.get_output_from_indices
    ours_decoded = decode(ours, projections_of(theirs), state_of(theirs), jnp.asarray(indices.numpy()))
    close(ours_decoded, decoded(indices))
    assert float(loss.sum()) == 0  # They have none in evaluation.


@pytest.mark.parametrize(
    ("kind", "num_codebooks", "inverse_temperature"),
    [(LFQ, 1, 100.0), (LFQ, 2, 1.0), (LFQ, 2, 100.0), (BSQ, 1, 1.0), (BSQ, 1, 100.0), (BSQ, 2, 1.0)],
)
def test_one_codebook_and_several(kind, num_codebooks, inverse_temperature):
    bits = DIM // num_codebooks
    theirs = peer.LFQ(codebook_size=2**bits, num_codebooks=num_codebooks, spherical=kind is BSQ)
    ours = kind(bits, num_codebooks=num_codebooks, inverse_temperature=inverse_temperature, smallest_probability=CLAMP)
    z = normal(*SHAPE, DIM)
    check_evaluation(ours, theirs, z, compare_with_terms(ours, theirs, z))


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_every_option_with_projections(kind):
    theirs = peer.LFQ(
        dim=5,
        codebook_size=8,
        num_codebooks=2,
        codebook_scale=0.5,
        entropy_loss_weight=0.2,
        diversity_gamma=2.0,
        commitment_loss_weight=0.3,
        soft_clamp_input_value=0.7,
        orthogonal_rotation=True,
        spherical=kind is BSQ,
    )
    ours = kind(
        3,
        num_codebooks=2,
        scale=0.5,
        entropy_weight=0.2,
        diversity_gamma=2.0,
        commitment_weight=0.3,
        soft_clamp=0.7,
        orthogonal_rotation=True,
        inverse_temperature=10.0,
        smallest_probability=CLAMP,
    )
    z = normal(*SHAPE, 5)
    check_evaluation(ours, theirs, z, compare_with_terms(ours, theirs, z))


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_masks(num_codebooks):
    # Without the entropy of the batch, for theirs is wrong under a mask: see below.
    arguments = {"num_codebooks": num_codebooks, "commitment_weight": 0.3, "diversity_gamma": 0.0}
    ours = LFQ(DIM // num_codebooks, inverse_temperature=1.0, smallest_probability=CLAMP, **arguments)
    theirs = peer.LFQ(
        codebook_size=2**ours.bits, num_codebooks=num_codebooks, commitment_loss_weight=0.3, diversity_gamma=0.0
    )
    z, mask = normal(*SHAPE, DIM), normal(*SHAPE, seed=1) > 0
    _, (_, terms) = compare(ours, theirs, z, mask=mask, inv_temperature=1.0, return_loss_breakdown=True)
    # Where all tokens count, the mask changes nothing in ours.
    out = run(ours, jnp.asarray(z), jnp.ones(SHAPE, bool))
    _, whole = theirs(torch.tensor(z), inv_temperature=1.0, return_loss_breakdown=True)
    close(out.metrics["batch_entropy"], whole.batch_entropy)
    assert float(whole.batch_entropy) > 1.1 * float(terms.batch_entropy)


def test_defect_their_mask_turns_the_entropy_of_the_batch_into_that_of_the_tokens():
    # The mask drops an axis, and the mean over tokens is taken over none: the default loss is always zero.
    z, mask = normal(*SHAPE, DIM), normal(*SHAPE, seed=1) > 0
    theirs = peer.LFQ(dim=DIM).train()
    (_, _, loss), terms = theirs(
        torch.tensor(z), inv_temperature=1.0, return_loss_breakdown=True, mask=torch.tensor(mask)
    )
    assert float(terms.batch_entropy) == float(terms.per_sample_entropy)
    assert float(loss) == 0
    out = run(PLAIN, jnp.asarray(z), jnp.asarray(mask))
    # Theirs without the mask, of the tokens that it leaves.
    _, alone = theirs(torch.tensor(z[mask][None]), inv_temperature=1.0, return_loss_breakdown=True)
    close(out.metrics["batch_entropy"], alone.batch_entropy)
    assert float(alone.batch_entropy) > 2 * float(terms.batch_entropy)


@pytest.mark.parametrize("projected", [False, True])
def test_residual_stages(projected):
    bits, stages, dim = (4, 2, 5) if projected else (DIM, 3, DIM)
    theirs = peer.ResidualLFQ(
        dim=dim, codebook_size=2**bits, num_quantizers=stages, soft_clamp_input_value=1.5, commitment_loss_weight=0.2
    )
    arguments = {"soft_clamp": 1.5, "commitment_weight": 0.2, "smallest_probability": CLAMP}
    ours = Residual(LFQ(bits, **arguments), stages, gradient="per_stage")
    z = normal(*SHAPE, dim)
    out, _ = compare(ours, theirs, z)
    check_evaluation(ours, theirs, z, out)


@pytest.mark.parametrize(("bits", "largest"), [(6, 3e-4), (10, 4e-3)])
@pytest.mark.parametrize("inverse_temperature", [0.25, 1.0, 100.0])
def test_exact_entropies_exceed_theirs_by_less_than_a_few_thousandths(bits, largest, inverse_temperature):
    # Bounding a probability p < 1e-5 within the logarithm takes p log(1e-5/p) off, at most 1e-5/e for each code.
    assert largest > 2**bits * CLAMP / np.e
    logits = jnp.asarray(4 * inverse_temperature * normal(*SHAPE, bits))
    for exact, clamped in zip(exact_entropies(logits), clamped_entropies(logits), strict=True):
        assert -1e-5 < float(exact) - float(clamped) < largest


def test_binary_mapper():
    theirs, logits, weights = peer.BinaryMapper(4, deterministic_on_eval=True), normal(5, 7, 4), normal(5, 7, 16)
    x = torch.tensor(logits, requires_grad=True)
    one_hot, indices, loss = theirs.train()(x, return_indices=True)
    ((one_hot * torch.tensor(weights)).sum() + 50 * loss).backward()
    ours = BinaryMapper(4)
    out, (_, gradient) = ours_with_gradients(ours, {}, {}, jnp.asarray(logits), jnp.asarray(weights), None)
    close(out.loss, loss)
    close(gradient, x.grad, rtol=1e-4, atol=1e-5)
    indices = jnp.asarray(indices.numpy())
    close(ours.apply({}, jnp.asarray(logits), indices, method="log_prob"), theirs.log_prob(x, one_hot=one_hot))
    close(decode(ours, {}, {}, indices), one_hot)
    one_hot, indices, _ = theirs.eval()(x, return_indices=True)
    out = run(ours, jnp.asarray(logits), train=False)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(out.quantized, one_hot)


def test_binary_mapper_draws_at_a_temperature_from_the_same_distribution():
    logits = np.broadcast_to(normal(3), (2**14, 3))
    theirs = peer.BinaryMapper(3)(torch.tensor(logits.copy()), temperature=2.0, return_indices=True)[1]
    ours = run(BinaryMapper(3, temperature=2.0), jnp.asarray(logits))
    shares = [np.bincount(np.asarray(indices), minlength=8) / 2**14 for indices in (ours.indices, theirs)]
    np.testing.assert_allclose(*shares, atol=0.02)  # Five standard deviations of a difference.


TWO_PROCESSES = """
import json, os, sys
import numpy as np, torch
import torch.distributed as dist

torch.set_num_threads(1)
import vector_quantize_pytorch as peer

def measure(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    z = torch.tensor(np.load(f"{folder}/z.npy"))[rank]
    terms = peer.LFQ(dim=z.shape[-1]).train()(z[None], inv_temperature=1.0, return_loss_breakdown=True)[1]
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump([float(terms.per_sample_entropy), float(terms.batch_entropy)], file)
    dist.barrier()

torch.multiprocessing.start_processes(measure, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_defect_their_entropy_over_processes_is_that_of_local_probabilities_divided_by_their_number(tmp_path):
    z = normal(2, 40, DIM, scale=2.0)
    np.save(tmp_path / "z.npy", z)
    subprocess.run([sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, tmp_path], check=True, timeout=120)
    theirs = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    local = [clamped_entropies(jnp.asarray(4 * part))[1] for part in z]
    for (_, batch), alone in zip(theirs, local, strict=True):
        # -sum p/2 log(p/2) of the local p alone: what the other process has is lost.
        np.testing.assert_allclose(batch, (float(alone) + np.log(2)) / 2, atol=1e-3)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    module = LFQ(DIM, inverse_temperature=1.0, smallest_probability=CLAMP, axis_name="data")
    entropy = lambda z: module.apply({}, z, train=True).metrics["batch_entropy"][None]  # noqa: E731
    ours = jax.jit(jax.shard_map(entropy, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(jnp.asarray(z))
    _, expected = clamped_entropies(jnp.asarray(4 * z))
    close(ours, np.full(2, expected))
    assert all(float(expected) > float(alone) + 0.1 for alone in local)
    assert all(float(expected) > 1.5 * batch for _, batch in theirs)


def test_defect_their_entropy_of_many_codes_saturates_and_loses_its_gradient():
    # A uniform distribution over 2^17 codes has probabilities below 1e-5: theirs is log(1e5) for every such batch.
    bits = 17
    z = normal(4, bits, scale=0.02)
    x = torch.tensor(z[None], requires_grad=True)
    _, terms = peer.LFQ(dim=bits).train()(x, inv_temperature=1.0, return_loss_breakdown=True)
    terms.batch_entropy.backward()
    np.testing.assert_allclose(float(terms.batch_entropy.detach()), np.log(1e5), rtol=1e-4)
    # Rounding, by processor.
    assert float(x.grad.abs().max()) < 1e-4

    def entropy(z):
        return LFQ(bits, inverse_temperature=1.0).apply({}, z).metrics["batch_entropy"]

    exact = lambda z: bit_entropies(4 * z, bits_per_group=bits)[1]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(exact))(jnp.asarray(z))
    assert 0.99 * bits * np.log(2) < float(value) < bits * np.log(2)
    close(jax.jit(entropy)(jnp.asarray(z)), value, rtol=1e-3)
    assert float(jnp.max(jnp.abs(gradient))) > 1e-2


def test_defect_their_loss_holds_a_value_for_each_token_and_code():
    tokens, bits = 64, 12
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        peer.LFQ(dim=bits).train()(torch.tensor(normal(1, tokens, bits), requires_grad=True))
    assert max(saved) == tokens * 2**bits
    gradient = jax.make_jaxpr(jax.grad(lambda z: LFQ(bits).apply({}, z).loss))(normal(tokens, bits))
    shapes = re.findall(r"\w+\d\[([\d,]+)\]", str(gradient))
    sizes = [math.prod(int(axis) for axis in shape.split(",")) for shape in shapes]
    assert tokens * bits <= max(sizes) <= 2**bits


def test_defect_a_batch_without_valid_tokens_is_nan_in_theirs():
    z, mask = normal(*SHAPE, DIM), np.zeros(SHAPE, bool)
    assert np.isnan(float(peer.LFQ(dim=DIM).train()(torch.tensor(z), mask=torch.tensor(mask))[2]))
    assert float(run(PLAIN, jnp.asarray(z), jnp.asarray(mask)).loss) == 0


def test_defect_what_theirs_returns_in_training_is_the_code_up_to_rounding_of_its_input():
    z = normal(*SHAPE, DIM, scale=1e5)
    quantized = peer.LFQ(dim=DIM, codebook_scale=0.3).train()(torch.tensor(z))[0]
    assert np.max(np.abs(np.abs(quantized.detach().numpy()) - 0.3)) > 1e-3
    out = run(LFQ(DIM, scale=0.3), jnp.asarray(z))
    np.testing.assert_array_equal(np.abs(out.quantized), np.full_like(z, np.float32(0.3)))
    logits = normal(*SHAPE, DIM)
    one_hot = peer.BinaryMapper(DIM).train()(torch.tensor(logits))[0]
    assert set(np.unique(one_hot.detach().numpy())) != {0.0, 1.0}
    assert set(np.unique(run(BinaryMapper(DIM), jnp.asarray(logits)).quantized)) == {0.0, 1.0}


def test_defect_masked_tokens_have_codes_in_theirs():
    z, mask = normal(*SHAPE, DIM), np.zeros(SHAPE, bool)
    mask[0] = True
    quantized, indices, _ = peer.LFQ(dim=DIM).train()(torch.tensor(z), mask=torch.tensor(mask))
    assert bool((quantized[1:] != 0).any() and (indices[1:] >= 0).all())
    out = run(PLAIN, jnp.asarray(z), jnp.asarray(mask))
    assert not np.any(out.quantized[1:])
    assert np.all(out.indices[1:] == -1)


def test_defect_08_their_gradient_grows_with_the_stages_ours_does_not():
    z = normal(*SHAPE, DIM)
    x = torch.tensor(z, requires_grad=True)
    peer.ResidualLFQ(dim=DIM, codebook_size=2**DIM, num_quantizers=3).train()(x)[0].sum().backward()
    close(x.grad, np.full_like(z, 3.0))
    total = lambda z: jnp.sum(Residual(LFQ(DIM), 3).apply({}, z).quantized)  # noqa: E731
    gradient = jax.jit(jax.grad(total))(jnp.asarray(z))
    close(gradient, np.ones_like(z))


@pytest.mark.parametrize("option", ["spherical", "orthogonal_rotation"])
def test_defect_their_residual_form_decodes_other_vectors_than_it_returned(option):
    # Its codebook is that of plain signs whatever the stages do.
    z = normal(*SHAPE, DIM)
    theirs = peer.ResidualLFQ(dim=DIM, codebook_size=2**DIM, num_quantizers=2, **{option: True}).eval()
    quantized, indices, _ = theirs(torch.tensor(z))
    assert float((theirs.get_output_from_indices(indices) - quantized).abs().max()) > 0.5
    ours = Residual(BSQ(DIM) if option == "spherical" else LFQ(DIM, orthogonal_rotation=True), 2)
    variables = ours.init(KEY, jnp.asarray(z))
    out = ours.apply(variables, jnp.asarray(z))
    np.testing.assert_array_equal(ours.apply(variables, out.indices, method="decode"), out.quantized)


def test_defect_their_binary_mapper_draws_in_evaluation():
    logits = normal(500, 4)
    theirs = peer.BinaryMapper(4).eval()
    first, second = (theirs(torch.tensor(logits), return_indices=True)[1] for _ in range(2))
    assert not torch.equal(first, second)
    keys = jax.random.split(KEY)
    first, second = (run(BinaryMapper(4), jnp.asarray(logits), train=False, key=key).indices for key in keys)
    np.testing.assert_array_equal(first, second)


def test_defect_a_missing_index_has_the_probability_of_the_last_code_in_theirs():
    logits = normal(1, 4)
    theirs = peer.BinaryMapper(4)
    missing, last = (theirs.log_prob(torch.tensor(logits), indices=torch.tensor([index])) for index in (-1, 15))
    assert torch.equal(missing, last)
    assert float(BinaryMapper(4).apply({}, jnp.asarray(logits), jnp.array([-1]), method="log_prob")[0]) == 0
