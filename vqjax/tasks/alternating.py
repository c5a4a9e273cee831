"""Alternating optimization: steps on the codebook before each step on the task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from vqjax.models import VQVAE
from vqjax.tasks.state import TrainState


def alternating_steps(
    codebook_loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    num_steps: int,
) -> tuple[PyTree, Any]:
    """Moves parameters down the codebook loss.

    The tokens are those of the current batch and encoder, held constant, so the codes catch up with them before the
    task's gradient is taken at the codes. Give the codebook ``weight=0``: otherwise the codes move twice.

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
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=8, codebook=GradientCodebook(weight=0.0))
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


class CodebookOptimizer(NamedTuple):
    """What moves the codebook between task steps.

    Attributes:
      optimizer: Of the quantizer's parameters alone.
      num_steps: Steps before each task step.
    """

    optimizer: optax.GradientTransformation
    num_steps: int


def build_codebook_optimizer(options: ConfigDict) -> CodebookOptimizer | None:
    """The optimizer that the config's group ``alternating`` describes; None where it asks for none."""
    if not options.num_steps:
        return None
    return CodebookOptimizer(optax.sgd(options.learning_rate, momentum=options.momentum), options.num_steps)


def codebook_steps(
    state: TrainState, images: Float[Array, "batch height width channels"], model: VQVAE, codebook: CodebookOptimizer
) -> TrainState:
    """Moves the quantizer's parameters towards the tokens of a batch.

    Args:
      state: Before; its ``opt_state["codebook"]`` is the optimizer's.
      images: In [-1, 1].
      model: The autoencoder.
      codebook: The optimizer and its number of steps.

    Returns:
      The state with other parameters of the quantizer.
    """
    latents = model.apply(state.variables, images, method="latents")

    def loss(quantizer: dict) -> Float[Array, ""]:
        variables = state.variables | {"params": state.params | {"quantizer": quantizer}}
        return model.apply(variables, latents, method=lambda model, z: model.quantizer.codebook_loss(z))

    params, opt_state = alternating_steps(
        loss, state.params["quantizer"], codebook.optimizer, state.opt_state["codebook"], codebook.num_steps
    )
    return state.replace(
        params=state.params | {"quantizer": params}, opt_state=state.opt_state | {"codebook": opt_state}
    )
