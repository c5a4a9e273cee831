"""Every mistake is answered by what is wrong and what to do."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.quantizing import CODES, DIM, create, gaussian, updates
from vqjax import UserError, VectorQuantizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, r"num_codes=0 is not allowed: use a whole number of at least 1"),
        ({"num_codes": 16.0}, r"num_codes=16.0 is not allowed"),
        ({"num_codes": 2**31}, r"num_codes=2147483648 is not allowed"),
        ({"metric": "cos"}, r"metric='cos' is not allowed: use 'euclidean' or 'cosine'"),
        ({"codebook_update": "EMA"}, r"codebook_update='EMA' is not allowed: use 'ema', 'gradient', 'none' or"),
        ({"estimator": "ste"}, r"estimator must be one of straight_through, rotation, .*, got 'ste'"),
        ({"decay": 1.0}, r"decay=1.0 is not allowed: use a number in \[0, 1\)"),
        ({"decay": -0.1}, r"decay=-0.1 is not allowed"),
        ({"decay": float("nan")}, r"decay=nan is not allowed"),
        ({"commitment_weight": -1.0}, r"commitment_weight=-1.0 is not allowed: use a finite number of at least 0"),
        ({"codebook_weight": 1.0}, r"codebook_weight=1.0 is not allowed: only codes that are learned by gradient"),
        ({"codebook_weight": -1.0, "codebook_update": "gradient"}, r"codebook_weight=-1.0 .* at least 0"),
        ({"dead_code_threshold": 2.0}, r"dead_code_threshold=2.0 .* fraction of the average use, in \[0, 1\)"),
        ({"codebook_shards": 3}, r"codebook_shards=3 is not allowed: use a whole number that divides num_codes=16"),
        (
            {"codebook_shards": 2, "heads": 2, "separate_codebooks": True},
            r"codebook_shards=2 .* are not divided. Use 1",
        ),
        ({"replace_dead_codes": True, "codebook_update": "none"}, r"replace_dead_codes=True .* freezes the codebook"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message, as_users_run_it):
    with pytest.raises(UserError, match=message):
        VectorQuantizer(**({"num_codes": 16} | arguments))


def test_wrong_inputs_are_named(as_users_run_it):
    vq, variables = create()
    z = gaussian(2, 3, DIM)
    with pytest.raises(UserError, match=r"z has 5 features and num_codes=12, .* shape \(12, 4\): pass z of 4 features"):
        vq.apply(variables, gaussian(2, 5))
    with pytest.raises(UserError, match="num_codes=13 with one codebook"):
        vq.clone(num_codes=13).apply(variables, z)
    with pytest.raises(UserError, match=r"z has dtype int32: pass floating-point vectors"):
        vq.apply(variables, jnp.ones((2, DIM), jnp.int32), method="encode")
    with pytest.raises(UserError, match=r"indices has dtype float32: decode takes integers"):
        vq.apply(variables, jnp.ones(3), method="decode")
    with pytest.raises(UserError, match=r"mask is bool\[2\]: pass bool\[2, 3\], one value per token"):
        vq.apply(variables, z, jnp.ones(2, bool))
    with pytest.raises(UserError, match=r"mask is float32\[2, 3\]: pass bool\[2, 3\]"):
        vq.apply(variables, z, jnp.ones((2, 3)))


@updates
def test_wrong_feature_counts_are_named_by_encode_too(codebook_update):
    vq, variables = create(codebook_update=codebook_update)
    with pytest.raises(UserError, match=r"z has 5 features"):
        vq.apply(variables, gaussian(2, 5), method="encode")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kmeans_init"}, r"kmeans_init draws random tokens or numbers: pass rngs=\{'quantizer': key\}"),
        ({"train": True}, r"replace_dead_codes=True draws random tokens or numbers: pass rngs=\{'quantizer': key\}"),
    ],
)
def test_a_missing_key_is_named(arguments, message):
    vq, variables = create(replace_dead_codes=True)
    with pytest.raises(UserError, match=message):
        vq.apply(variables, gaussian(20, DIM), mutable=["codebook"], **arguments)


@updates
@pytest.mark.parametrize("method", ["__call__", "encode"])
def test_missing_variables_are_named(codebook_update, method):
    # Flax alone answers the first with 'None needs PRNG for "quantizer"'.
    vq, variables = create(codebook_update=codebook_update)
    for collection in variables:
        rest = {name: value for name, value in variables.items() if name != collection}
        with pytest.raises(UserError, match=r"hold no codebook: create them with init\(key, z\).*not params alone"):
            vq.apply(rest, gaussian(2, 3, DIM), method=method)


def test_decoding_what_is_no_index():
    vq, variables = create()
    vectors = vq.apply(variables, jnp.array([[0, -1], [CODES - 1, CODES], [-2, 2**31 - 1]]), method="decode")
    codes = variables["codebook"]["codes"]
    np.testing.assert_array_equal(vectors[:2, 0], codes[jnp.array([0, CODES - 1])])
    np.testing.assert_array_equal(vectors[0, 1], 0)
    assert np.all(np.isnan(np.concatenate([vectors[1, 1:], vectors[2]])))
