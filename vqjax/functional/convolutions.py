"""Convolutions inside of loops and branches."""

import itertools
from collections.abc import Callable, Mapping, Sequence
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
    """Results of a traced function, in parts: between its convolutions, and these."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for convolves, equations in itertools.groupby(jaxpr.eqns, _convolves):
        if not convolves:
            values |= _evaluated_as_is(jaxpr, list(equations), values)
            continue
        for equation in equations:
            inputs = [value_of(atom) for atom in equation.invars]
            if equation.primitive is core.primitives.conv_general_dilated_p:
                results = [_convolution(*inputs, **equation.params)]
            else:
                called = equation.params["jaxpr"]
                results = _evaluated(called.jaxpr, called.consts, inputs)
            values |= zip(equation.outvars, results, strict=True)
    return [value_of(atom) for atom in jaxpr.outvars]


def _convolves(equation: core.JaxprEqn) -> bool:
    """Return whether an equation is a convolution, or calls a function that contains one."""
    if equation.primitive is core.primitives.jit_p:
        return any(map(_convolves, equation.params["jaxpr"].jaxpr.eqns))
    return equation.primitive is core.primitives.conv_general_dilated_p


def _evaluated_as_is(
    jaxpr: core.Jaxpr, equations: Sequence[core.JaxprEqn], values: Mapping[core.Var, Any]
) -> dict[core.Var, Any]:
    """Results of some equations by their variables, computed as this release of JAX does."""
    made = [variable for equation in equations for variable in equation.outvars]
    used = [atom for equation in equations for atom in equation.invars if not isinstance(atom, core.Literal)]
    given = [variable for variable in dict.fromkeys(used) if variable in values]
    part = jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=equations)
    return dict(zip(made, core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))(*map(values.get, given)), strict=True))


def _convolution(images: Array, kernel: Array, *, dimension_numbers: ConvDimensionNumbers, **options: Any) -> Array:
    of_images, of_kernel, of_result = dimension_numbers
    batch, channels, *space = of_images
    out, into, *window = of_kernel
    rank = len(space)
    trailing = (0, rank + 1, *range(1, rank + 1))
    result = conv_general_dilated(
        jnp.transpose(images, (batch, *space, channels)),
        jnp.transpose(kernel, (*window, into, out)),
        dimension_numbers=ConvDimensionNumbers(trailing, (rank + 1, rank, *range(rank)), trailing),
        **options,
    )
    batch, channels, *space = of_result
    return jnp.transpose(result, np.argsort((batch, *space, channels)).tolist())
