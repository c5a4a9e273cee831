"""Models imported from state dicts return what the originals do with them.

What the originals return is recorded by tests/parity/test_tokenizers.py.
"""

from pathlib import Path

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.goldens import assert_equal, channels_last
from helpers.tokenizers import ibq_state, images, magvit_entries, rotation_trick_state
from vqjax import UserError
from vqjax.importing import ibq, maskgit, open_magvit2, rotation_trick

RECORDED = Path(__file__).parent / "recorded"
IMPORTED = {
    "rotation_trick_euclidean": lambda: rotation_trick(rotation_trick_state(cosine=False)),
    "rotation_trick_cosine": lambda: rotation_trick(rotation_trick_state(cosine=True)),
    "ibq": lambda: ibq(ibq_state()),
    "open_magvit2": lambda: open_magvit2(magvit_entries(variant="open_magvit2")),
    "maskgit": lambda: maskgit(magvit_entries(variant="maskgit")),
}


@pytest.mark.full
@pytest.mark.parametrize("name", IMPORTED)
def test_the_original_is_reproduced(name):
    model, variables = IMPORTED[name]()
    recorded = np.load(RECORDED / f"{name}.npz")
    output = jax.jit(lambda x: model.apply(variables, x, train=False))(jnp.asarray(images()))
    np.testing.assert_array_equal(output.quantizer.indices, recorded["indices"])
    assert len(np.unique(recorded["indices"])) > 2
    assert_equal(output.reconstruction, channels_last(recorded["reconstruction"]))


def test_what_flax_has_written_is_read(tmp_path):
    arrays = magvit_entries(variant="maskgit")
    nested = {"params": flax.traverse_util.unflatten_dict(arrays, sep=".")}
    path = tmp_path / "tokenizer_imagenet256_checkpoint"
    path.write_bytes(flax.serialization.to_bytes(nested))
    _, variables = maskgit(path)
    chex.assert_trees_all_equal(variables, maskgit(arrays)[1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot be read"):
        maskgit(path)


def test_averages_of_open_magvit2_are_taken_and_its_losses_left_out():
    arrays = magvit_entries(variant="open_magvit2")
    averages = {f"model_ema.{key.replace('.', '')}": 2 * value for key, value in arrays.items()}
    others = {"loss.discriminator.main.0.weight": np.ones(3), "model_ema.decay": np.array(0.999)}
    doubled = {key: 2 * value for key, value in arrays.items()}
    chex.assert_trees_all_equal(open_magvit2(arrays | averages | others)[1], open_magvit2(doubled)[1])
    with pytest.raises(UserError, match=r"missing \['decoder.adaptive.1.beta.bias'\]"):
        open_magvit2({key: value for key, value in arrays.items() if key != "decoder.adaptive.1.beta.bias"})


@pytest.mark.parametrize("cosine", [False, True])
def test_the_rotation_trick_model_trains_on_from_its_averages(cosine):
    state = rotation_trick_state(cosine=cosine)
    model, variables = rotation_trick(state, {"model": "vqvae", "commit_weight": 0.5})
    quantizer, codebook = model.quantizer, variables["codebook"]["quantizer"]
    assert (quantizer.distance, quantizer.estimator) == ("cosine" if cosine else "euclidean", "straight_through")
    assert (quantizer.commitment_weight, quantizer.codebook.decay, model.pixels) == (0.5, 0.8, "clip")
    np.testing.assert_array_equal(codebook["counts"], state["module.vq._codebook.cluster_size"][0])
    used = np.asarray(codebook["counts"]) > 0
    np.testing.assert_array_equal(codebook["sums"][used], state["module.vq._codebook.embed_avg"][0][used])
    # Codes that have shrunk to zero are copies of the one before.
    np.testing.assert_array_equal(codebook["codes"][3], codebook["codes"][2 if cosine else 3])


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"codebook": "cosine"}, "codebook must be that of the arrays, got 'cosine'"),
        ({}, {"model": "vhp_vqvae"}, "model must be one of 'vqvae', 'rot_vqvae', got 'vhp_vqvae'"),
        ({"module.other": np.ones(2)}, {}, r"missing \[\] and surplus \['other'\]"),
        ({"module.vq._codebook.embed": np.ones((2, 3))}, {}, r"must have one codebook 'vq._codebook.embed'"),
        (
            {"module.vq._codebook.embed_avg": np.ones((1, 3))},
            {},
            r"vq._codebook.embed_avg must have shape \[1, 16, 4\]",
        ),
    ],
)
def test_another_model_than_that_of_the_rotation_trick_is_refused(change, config, message):
    with pytest.raises(UserError, match=message):
        rotation_trick(rotation_trick_state(cosine=False) | change, config)
