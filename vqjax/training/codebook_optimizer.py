"""Alternating optimization in the trainer: steps on the codebook before each step on the task."""

from typing import NamedTuple

import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vqjax.alternating import alternating_steps
from vqjax.models import VQVAE
from vqjax.training.state import TrainState


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
