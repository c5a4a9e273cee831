"""Alternating optimization: steps on the codebook before each step on the task."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Int, PyTree


def alternating_steps(
    codebook_loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    num_steps: int,
) -> tuple[PyTree, Any]:
    """Moves parameters down the codebook loss.

    The tokens are those of the current batch and encoder, held constant, so the codes catch up with them before the
    task's gradient is taken at the codes. Give the task's loss ``codebook_weight=0``: otherwise the codes move twice.

    Args:
      codebook_loss: Loss of the parameters, such as
        ``lambda params: vq.apply({**variables, "params": params}, z, method="codebook_loss")``.
      params: Of the quantizer.
      optimizer: Of the codebook alone.
      opt_state: Its state.
      num_steps: Number of steps; the tokens choose their codes anew in each.

    Returns:
      The parameters and the optimizer's state after the steps.

    Example:
      >>> import jax, optax
      >>> from vqjax import VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=8, codebook_update="gradient", codebook_weight=0.0)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> loss = lambda params: vq.apply({**variables, "params": params}, z, method="codebook_loss")
      >>> optimizer = optax.sgd(1.0, momentum=0.9)
      >>> start = variables["params"]
      >>> params, _ = alternating_steps(loss, start, optimizer, optimizer.init(start), num_steps=5)
      >>> bool(loss(params) < loss(start))
      True

    Source: Huh et al., ICML 2023 ("Straightening out the straight-through estimator"), Section 4.2.
    """

    def step(_: Int[Array, ""] | int, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(codebook_loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, num_steps, step, (params, opt_state))
