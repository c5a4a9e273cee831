"""ResidualVQ, alone and in Grouped, beside vector-quantize-pytorch 1.32: same state and inputs, same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import normal
from vqjax import VectorQuantizer
from vqjax.quantizers import EMACodebook
from vqjax.quantizers.grouped import Grouped
from vqjax.quantizers.residual import ResidualVQ
from vqjax.quantizers.transforms import ImplicitCodebook

torch = pytest.importorskip("torch")
peer = pytest.importorskip("vector_quantize_pytorch")

STAGES, CODES, DIM = 4, 16, 8
AVERAGES = EMACodebook(decay=0.8, smoothing=1e-5, start="one_token")
STAGE = VectorQuantizer(num_codes=CODES, codebook=AVERAGES, commitment_weight=1.0)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def their_residual(codebooks, **arguments):
    sizes = tuple(len(codes) for codes in codebooks)
    theirs = peer.ResidualVQ(dim=codebooks[0].shape[-1], codebook_size=sizes, **({"decay": 0.8} | arguments))
    inject(theirs, codebooks)
    return theirs.train()


def inject(theirs, codebooks):
    with torch.no_grad():
        for level, codes in zip(theirs.layers, codebooks, strict=True):
            for name in ("embed", "embed_avg"):
                if hasattr(level._codebook, name):
                    getattr(level._codebook, name).copy_(torch.tensor(codes)[None])


def our_state(codebooks):
    ones = {"counts": jnp.ones, "relative_usage": jnp.ones}
    return {
        f"stages_{number}": {"codes": jnp.asarray(codes), "sums": jnp.asarray(codes)}
        | {name: make(len(codes)) for name, make in ones.items()}
        for number, codes in enumerate(codebooks)
    }


def codebooks_of(sizes=(CODES,) * STAGES, dim=DIM):
    return [normal(size, dim, seed=number, scale=0.7**number) for number, size in enumerate(sizes)]


def stage_losses(out, stages=STAGES):
    return [out.metrics[f"quantization_error_{number}"] for number in range(stages)]


@pytest.mark.parametrize("sizes", [(CODES,) * STAGES, (16, 8, 4)])
def test_moving_averages_over_three_steps(sizes):
    codebooks = codebooks_of(sizes)
    theirs = their_residual(codebooks)
    module = ResidualVQ(STAGE, len(sizes), stage_sizes=sizes)
    variables = {"codebook": our_state(codebooks)}
    for step in range(3):
        z = normal(2, 32, DIM, seed=10 + step)
        quantized, indices, losses = theirs(torch.tensor(z))
        out, updates = module.apply(variables, jnp.asarray(z), train=True, mutable=["codebook"])
        variables = variables | updates
        np.testing.assert_array_equal(out.indices, indices)
        close(out.quantized, quantized)
        close(stage_losses(out, len(sizes)), losses)
        close(out.loss, losses.sum())
        for number, level in enumerate(theirs.layers):
            close(variables["codebook"][f"stages_{number}"]["codes"], level._codebook.embed[0])
    theirs.eval()
    close(
        module.apply(variables, jnp.asarray(indices.numpy()), method="decode"), theirs.get_output_from_indices(indices)
    )


@pytest.mark.parametrize("rotation", [False, True])
def test_defect_08_the_gradient_of_the_per_stage_form_grows_with_the_stages_ours_does_not(rotation):
    codebooks, z, cotangent = codebooks_of(), normal(2, 32, DIM, seed=10), normal(2, 32, DIM, seed=11)
    theirs = their_residual(codebooks, rotation_trick=rotation)
    x = torch.tensor(z, requires_grad=True)
    (theirs(x)[0] * torch.tensor(cotangent)).sum().backward()
    gradients = {}
    for form in ("per_stage", "total"):
        stage = STAGE.clone(estimator="rotation" if rotation else "straight_through")
        module = ResidualVQ(stage, STAGES, gradient=form)

        def value(z, module=module):
            out = module.apply({"codebook": our_state(codebooks)}, z, train=False)
            return jnp.sum(out.quantized * cotangent)

        gradients[form] = jax.grad(value)(jnp.asarray(z))
    close(gradients["per_stage"], x.grad, rtol=1e-4, atol=1e-4 if rotation else 1e-5)
    if not rotation:
        close(STAGES * gradients["total"], x.grad)


def test_projection_around_all_stages():
    codebooks, z = codebooks_of(dim=4), normal(2, 32, DIM, seed=10)
    theirs = peer.ResidualVQ(dim=DIM, codebook_size=CODES, codebook_dim=4, num_quantizers=STAGES).eval()
    inject(theirs, codebooks)
    params = {
        f"{name}_{part}": jnp.asarray(getattr(getattr(theirs, name), torch_part).detach().numpy().T)
        for name in ("project_in", "project_out")
        for part, torch_part in (("kernel", "weight"), ("bias", "bias"))
    }
    module = ResidualVQ(STAGE, STAGES, codebook_dim=4)
    out = module.apply({"params": params, "codebook": our_state(codebooks)}, jnp.asarray(z), train=False)
    quantized, indices, _ = theirs(torch.tensor(z))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized)


def test_implicit_codebooks():
    codebooks, z = codebooks_of(), normal(2, 16, DIM, seed=10)
    theirs = peer.ResidualVQ(
        dim=DIM,
        codebook_size=CODES,
        num_quantizers=STAGES,
        implicit_neural_codebook=True,
        mlp_kwargs={"dim_hidden": 12},
    )
    inject(theirs, codebooks)
    params = {f"stages_{number}": {"codes": jnp.asarray(codes)} for number, codes in enumerate(codebooks)}
    for number, mlp in enumerate(theirs.mlps):
        params[f"stages_{number + 1}"]["codebook_transform"] = our_network(mlp)
    module = ResidualVQ(
        STAGE.clone(codebook="gradient"), STAGES, implicit_codebooks=ImplicitCodebook(depth=4, hidden=12)
    )
    out = module.apply({"params": params}, jnp.asarray(z), train=False)
    quantized, indices, _ = theirs.eval()(torch.tensor(z))
    np.testing.assert_array_equal(out.indices, indices)
    close(out.quantized, quantized, atol=1e-5)


def our_network(mlp):
    def dense(layer, swapped=None):
        kernel = layer.weight.detach().numpy().T
        if swapped:
            kernel = np.concatenate([kernel[swapped:], kernel[:swapped]])
        return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(layer.bias.detach().numpy())}

    # They join condition and code, we code and condition.
    network = {"joined": dense(mlp.proj_in, swapped=DIM)}
    for block, (widen, _, narrow) in enumerate(mlp.layers):
        network |= {f"widen_{block}": dense(widen), f"narrow_{block}": dense(narrow)}
    return network


def test_groups():
    theirs = peer.GroupedResidualVQ(dim=2 * DIM, groups=2, codebook_size=CODES, num_quantizers=STAGES, decay=0.8)
    codebooks = [codebooks_of(), [codes[::-1].copy() for codes in codebooks_of()]]
    for part, codes in zip(theirs.rvqs, codebooks, strict=True):
        inject(part, codes)
    state = {f"parts_{number}": our_state(codes) for number, codes in enumerate(codebooks)}
    z = normal(2, 32, 2 * DIM, seed=10)
    module = Grouped(ResidualVQ(STAGE, STAGES), 2)
    out, _ = module.apply({"codebook": state}, jnp.asarray(z), train=True, mutable=["codebook"])
    quantized, indices, losses = theirs(torch.tensor(z))
    np.testing.assert_array_equal(jnp.moveaxis(out.indices, -2, 0), indices)
    close(out.quantized, quantized)
    close(out.loss, losses.sum())


def test_defect_01_their_beam_search_scores_the_sum_over_stages_ours_what_is_left():
    codebooks, z = codebooks_of(), normal(3, 32, DIM, seed=10)
    theirs = their_residual(codebooks, beam_size=8, rotation_trick=False).eval()
    their_error = np.mean((theirs(torch.tensor(z))[0].detach().numpy() - z) ** 2)
    module = ResidualVQ(STAGE, STAGES, beam_size=8)
    ours = module.apply({"codebook": our_state(codebooks)}, jnp.asarray(z), train=False)
    assert np.mean((np.asarray(ours.quantized) - z) ** 2) < their_error


def test_defect_01_their_beam_search_moves_a_frozen_codebook_ours_does_not():
    codebooks, z = codebooks_of(), normal(3, 32, DIM, seed=10)
    theirs = their_residual(codebooks, beam_size=8, rotation_trick=False)
    theirs(torch.tensor(z), freeze_codebook=True)
    assert np.max(np.abs(theirs.layers[0]._codebook.embed[0].numpy() - codebooks[0])) > 0.1
    module = ResidualVQ(STAGE.clone(codebook="frozen"), STAGES, beam_size=8)
    state = {name: {"codes": level["codes"]} for name, level in our_state(codebooks).items()}
    _, updates = module.apply({"codebook": state}, jnp.asarray(z), train=True, mutable=["codebook"])
    np.testing.assert_array_equal(updates["codebook"]["stages_0"]["codes"], codebooks[0])


def test_defect_15_their_shared_codebook_decays_once_per_stage():
    codes = codebooks_of()[0]
    theirs = peer.ResidualVQ(dim=DIM, codebook_size=CODES, num_quantizers=STAGES, shared_codebook=True, decay=0.8)
    inject(theirs, [codes] * STAGES)
    z = normal(2, 32, DIM, seed=10)
    _, indices, _ = theirs.train()(torch.tensor(z))
    state = {"stages_0": our_state([codes])["stages_0"]}
    module = ResidualVQ(STAGE, STAGES, shared_codebook=True)
    out, updates = module.apply({"codebook": state}, jnp.asarray(z), train=True, mutable=["codebook"])
    np.testing.assert_array_equal(out.indices, indices)
    total = 0.8 * CODES + 0.2 * indices.numel()
    assert float(updates["codebook"]["stages_0"]["counts"].sum()) == pytest.approx(total, rel=1e-5)
    assert abs(float(theirs.layers[0]._codebook.cluster_size.sum()) - total) > 1
