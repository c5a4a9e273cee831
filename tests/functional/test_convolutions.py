"""Convolutions of NHWC images by HWIO kernels alone: the same numbers, and no others in the program of a branch."""

import re

import jax
import jax.numpy as jnp
import pytest

from vqjax.functional.convolutions import with_trailing_channels

KEY = jax.random.key(0)
CASES = {
    "same": {},
    "strided": {"window_strides": (2, 1)},
    "dilated": {"rhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))},
    "transposed": {"lhs_dilation": (2, 2), "padding": ((2, 1), (1, 2))},
    "grouped": {"feature_group_count": 2},
}


def convolution(images, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return jax.lax.conv_general_dilated(images, kernel, **options)


def gradients(options):
    """Gradient of a penalty of a gradient, so that every order of axes occurs that a second derivative has."""

    def loss(kernel, images):
        return jnp.sum(jnp.tanh(jax.jit(lambda x: convolution(x, kernel, **options))(images)))

    def penalty(kernel, images):
        return jnp.sum(jnp.square(jax.grad(loss, argnums=1)(kernel, images))) + loss(kernel, images)

    return jax.grad(penalty, argnums=(0, 1))


def arguments(options):
    groups = options.get("feature_group_count", 1)
    return jax.random.normal(KEY, (3, 3, 4 // groups, 6)), jax.random.normal(KEY, (2, 9, 8, 4))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_derivatives_are_the_same(options):
    function, of = gradients(options), arguments(options)
    for ours, expected in zip(with_trailing_channels(function)(*of), function(*of), strict=True):
        assert jnp.allclose(ours, expected, rtol=1e-5, atol=1e-4)


def test_any_order_of_axes_and_number_of_dimensions():
    images, kernel = jax.random.normal(KEY, (3, 2, 4, 7, 6)), jax.random.normal(KEY, (3, 2, 5, 3, 3))

    def function(images, kernel):
        numbers = ("CNDHW", "DHOIW", "HWNDC")
        return convolution(
            images, jnp.moveaxis(kernel, (0, 1), (3, 2)), window_strides=(1,) * 3, dimension_numbers=numbers
        )

    assert jnp.allclose(with_trailing_channels(function)(images, kernel), function(images, kernel), atol=1e-4)


def test_what_it_closes_over_and_pytrees():
    kernel, images = arguments({})

    @jax.jit
    def slope(images):
        function = with_trailing_channels(jax.grad(lambda of: jnp.sum(convolution(images, of["kernel"]) ** 2)))
        return function({"kernel": kernel})["kernel"]

    assert jnp.allclose(
        slope(images), jax.grad(lambda kernel: jnp.sum(convolution(images, kernel) ** 2))(kernel), rtol=1e-5
    )


def test_a_branch_has_no_convolution_in_another_order():
    """XLA computes others slowly there on CPUs."""

    def program(transform):
        def step(number, *of):
            return jax.lax.cond(number == 0, transform(gradients({})), lambda *of: of, *of)

        text = jax.jit(step).lower(0, *arguments({})).compile().as_text()
        return set(re.findall(r"dim_labels=(\w+->\w+)", text))

    assert program(with_trailing_channels) == {"b01f_01io->b01f"}
    assert len(program(lambda function: function)) > 1
