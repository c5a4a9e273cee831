"""Models imported from state dicts return what the originals do with them.

What the originals return is recorded by tests/parity/test_tokenizers.py.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.goldens import assert_equal, channels_last
from helpers.tokenizers import ibq_state, images, rotation_trick_state
from vqjax import UserError
from vqjax.importing import ibq, rotation_trick

RECORDED = Path(__file__).parent / "recorded"
IMPORTED = {
    "rotation_trick_euclidean": lambda: rotation_trick(rotation_trick_state(cosine=False)),
    "rotation_trick_cosine": lambda: rotation_trick(rotation_trick_state(cosine=True)),
    "ibq": lambda: ibq(ibq_state()),
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
