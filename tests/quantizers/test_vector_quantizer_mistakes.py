"""Errors name the argument, its value, and what to do."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import CODES, DIM, codebooks, create, gaussian, replacing
from vqjax import UserError, VectorQuantizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, r"num_codes must be an integer in \[1, 2147483647\], got 0"),
        ({"num_codes": 16.0}, r"num_codes must be .*, got 16.0"),
        ({"num_codes": 2**31}, r"num_codes must be .*, got 2147483648"),
        ({"distance": "cos"}, r"distance must be 'euclidean' or 'cosine', got 'cos'"),
        ({"codebook": "EMA"}, r"codebook must be 'ema', 'gradient', 'frozen', or a codebook such as .*, got 'EMA'"),
        ({"estimator": "ste"}, r"estimator must be the name of one, .*, got 'ste'; .*'straight_through'"),
        ({"commitment_weight": -1.0}, r"commitment_weight must be a finite number of at least 0, got -1.0"),
        ({"commitment": "cosine"}, r"commitment must be 'squared', 'relative' or 'angular', got 'cosine'"),
        ({"latent_norm": "batch"}, r"latent_norm must be 'rms', 'layer' or None, got 'batch'"),
        ({"latent_norm": "rms", "distance": "cosine"}, r"latent_norm must be None, got 'rms'; distance='cosine' has"),
        ({"commitment": "angular", "distance": "cosine"}, r"commitment must be 'squared', got 'angular'; distance="),
        ({"differentiate_norm": False}, r"differentiate_norm must be True, got False; there is no norm without"),
        ({"codebook_shards": 3}, r"codebook_shards must be an integer that divides num_codes=16, got 3"),
        (
            {"codebook_shards": 2, "heads": 2, "separate_codebooks": True},
            r"codebook_shards must be 1, got 2; separate codebooks cannot be sharded",
        ),
        ({"sampling_temperature": 0.0}, r"sampling_temperature must be a finite number above 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        VectorQuantizer(**({"num_codes": 16} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    vq, variables = create()
    z = gaussian(2, 3, DIM)
    with pytest.raises(UserError, match=r"z must have 4 features, as the codebook of shape \(12, 4\) .*, got 5"):
        vq.apply(variables, gaussian(2, 5), train=False)
    with pytest.raises(UserError, match="must match num_codes=13 and one codebook, got shape"):
        vq.clone(num_codes=13).apply(variables, z, train=False)
    with pytest.raises(UserError, match=r"z must be floating-point vectors, got int32"):
        vq.apply(variables, jnp.ones((2, DIM), jnp.int32), method="encode")
    with pytest.raises(UserError, match=r"indices must be an array of integers, .*, got float32"):
        vq.apply(variables, jnp.ones(3), method="decode")
    with pytest.raises(UserError, match=r"mask must be bool\[2, 3\], one value per token of z, got bool\[2\]"):
        vq.apply(variables, z, jnp.ones(2, bool), train=False)
    with pytest.raises(UserError, match=r"mask must be bool\[2, 3\], .*, got float32\[2, 3\]"):
        vq.apply(variables, z, jnp.ones((2, 3)), train=False)


@codebooks
def test_wrong_feature_counts_are_named_by_encode_too(codebook):
    vq, variables = create(codebook=codebook)
    with pytest.raises(UserError, match=r"z must have 4 features, .*, got 5"):
        vq.apply(variables, gaussian(2, 5), method="encode")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kmeans_init"}, r"kmeans_init draws random numbers; pass rngs=\{'quantizer': key\}"),
        ({"train": True}, r"replace=Replacement\(.*\) draws random numbers; pass rngs=\{'quantizer': key\}"),
    ],
)
def test_a_missing_key_is_named(arguments, message):
    vq, variables = create(codebook=replacing())
    with pytest.raises(UserError, match=message):
        vq.apply(variables, gaussian(20, DIM), mutable=["codebook"], **arguments)


@codebooks
@pytest.mark.parametrize("arguments", [{"train": False}, {"method": "encode"}])
def test_missing_variables_are_named(codebook, arguments):
    # Flax alone answers the first with 'None needs PRNG for "quantizer"'.
    vq, variables = create(codebook=codebook)
    for collection in variables:
        rest = {name: value for name, value in variables.items() if name != collection}
        with pytest.raises(
            UserError, match=r"must hold a codebook, got none; create them with init\(key, z\).*not only params"
        ):
            vq.apply(rest, gaussian(2, 3, DIM), **arguments)


def test_decoding_invalid_indices():
    vq, variables = create()
    vectors = vq.apply(variables, jnp.array([[0, -1], [CODES - 1, CODES], [-2, 2**31 - 1]]), method="decode")
    codes = variables["codebook"]["codes"]
    np.testing.assert_array_equal(vectors[:2, 0], codes[jnp.array([0, CODES - 1])])
    np.testing.assert_array_equal(vectors[0, 1], 0)
    assert np.all(np.isnan(np.concatenate([vectors[1, 1:], vectors[2]])))
