"""Convolutions inside of loops and branches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.lax import ConvDimensionNumbers, conv_general_dilated
from jaxtyping import Array, PyTree


def with_trailing_channels(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return a function that computes the same with convolutions of NHWC images by HWIO kernels alone.

    XLA has fast convolutions for CPUs in this order of axes, and brings others into it, such as those of gradients with
    respect to kernels; but only outside of loops and branches, where a convolution in another order takes ten to thirty
    times as long (docs/performance.md). Wrap what a loop repeats or a branch computes, and take gradients inside:
    those of the result have other orders again.

    Args:
      function: A function of arrays, or pytrees of them. Of what it calls, loops and branches stay as they are.

    Returns:
      The function.

    Example:
      >>> def loss(kernel, images):
      ...     return jnp.sum(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME",
      ...                    dimension_numbers=("NHWC", "HWIO", "NHWC")))
      >>> arguments = jnp.ones((3, 3, 1, 1)), jnp.ones((2, 8, 8, 1))
      >>> slope = with_trailing_channels(jax.grad(loss))(*arguments)
      >>> bool(jnp.array_equal(slope, jax.grad(loss)(*arguments)))
      True
    """

    def rewritten(*arguments: PyTree) -> PyTree:
        jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = _evaluated(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(result), leaves)

    return rewritten


def _evaluated(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [value_of(atom) for atom in equation.invars]
        if equation.primitive is core.primitives.conv_general_dilated_p:
            results = [_convolution(*inputs, **equation.params)]
        elif equation.primitive is core.primitives.jit_p:
            called = equation.params["jaxpr"]
            results = _evaluated(called.jaxpr, called.consts, inputs)
        else:
            results = _alone(jaxpr, equation)(*inputs)
        values |= zip(equation.outvars, results, strict=True)
    return [value_of(atom) for atom in jaxpr.outvars]


def _alone(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., list[Any]]:
    """One equation as a function, which binds it as this release of JAX does."""
    variables = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
    of_variables = core.jaxpr_as_fun(
        core.ClosedJaxpr(
            jaxpr.replace(constvars=[], invars=variables, outvars=equation.outvars, eqns=[equation]),
            (),
        )
    )
    return lambda *inputs: of_variables(
        *(x for x, atom in zip(inputs, equation.invars, strict=True) if not isinstance(atom, core.Literal))
    )


def _convolution(images: Array, kernel: Array, *, dimension_numbers: ConvDimensionNumbers, **options: Any) -> Array:
    of_images, of_kernel, of_result = dimension_numbers
    batch, channels, *space = of_images
    out, into, *window = of_kernel
    rank = len(space)
    result = conv_general_dilated(
        jnp.transpose(images, (batch, *space, channels)),
        jnp.transpose(kernel, (*window, into, out)),
        options.pop("window_strides"),
        dimension_numbers=ConvDimensionNumbers(
            (0, rank + 1, *range(1, rank + 1)), (rank + 1, rank, *range(rank)), (0, rank + 1, *range(1, rank + 1))
        ),
        **options,
    )
    batch, channels, *space = of_result
    return jnp.transpose(result, np.argsort((batch, *space, channels)).tolist())
