"""Initializers of codes: their distributions, and their names in configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError, VectorQuantizer, quantizers
from vqjax.quantizers.initializers import INITIALIZERS

CODES, DIM = 512, 16


@pytest.mark.parametrize(
    ("name", "variance", "largest"),
    [
        ("unit_uniform", 1 / DIM, (3 / DIM) ** 0.5),
        ("unit_normal", 1 / DIM, None),
        ("normal", 1, None),
        ("inverse_size", 1 / (3 * CODES**2), 1 / CODES),
        ("kaiming", 2 / (CODES * DIM), (6 / (CODES * DIM)) ** 0.5),
    ],
)
def test_codes_start_from_the_distribution_that_is_named(name, variance, largest):
    vq = VectorQuantizer(CODES, codebook_init=name)
    codes = np.asarray(vq.init(jax.random.key(0), gaussian(2, DIM))["codebook"]["codes"])
    np.testing.assert_allclose(codes.var(), variance, rtol=0.05)
    assert abs(codes.mean()) < 0.05 * variance**0.5
    if largest is not None:
        assert 0.99 * largest < np.abs(codes).max() <= largest


def test_a_config_names_the_initializer():
    config = quantizers.defaults("vq", num_codes=4)
    assert config["codebook_init"] == "unit_uniform"
    assert quantizers.build(**config | {"codebook_init": "inverse_size"}).codebook_init == "inverse_size"
    with pytest.raises(UserError, match=r"codebook_init must be .* or one of 'unit_uniform', .*, got 'uni'"):
        quantizers.build(**config | {"codebook_init": "uni"})


def test_a_name_is_what_it_stands_for():
    for name, init in INITIALIZERS.items():
        named, given = (
            VectorQuantizer(CODES, codebook_init=one).init(jax.random.key(0), jnp.zeros((2, DIM)))["codebook"]["codes"]
            for one in (name, init)
        )
        np.testing.assert_array_equal(named, given)
