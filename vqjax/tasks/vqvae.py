"""One training step, and the compiled program that takes several of them per dispatch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from vqjax.data import Batch, augment, to_model_range
from vqjax.models import VQVAE
from vqjax.tasks.alternating import CodebookOptimizer, codebook_steps
from vqjax.tasks.encoder_gradient import loss_through_quantizer
from vqjax.tasks.state import TrainState

Metrics = dict[str, Float[Array, ""]]


class StepOptions(NamedTuple):
    """What a step needs to know besides state and images.

    Attributes:
      seed: Of augmentation and quantizer; the key of step ``t`` is ``fold_in(key(seed), t)``.
      flip: Random horizontal flips.
      crop_padding: Pixels of padding before a random crop; None for no crop.
      reconstruction_scale: Factor of the mean squared error (pixels in [-1, 1]) in the loss.
      encoder_gradient: See :func:`vqjax.tasks.encoder_gradient.loss_through_quantizer`.
    """

    seed: int
    flip: bool = False
    crop_padding: int | None = None
    reconstruction_scale: float = 1.0
    encoder_gradient: str = "estimator"


def train_step(
    state: TrainState,
    batch: Batch,
    model: VQVAE,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
    codebook_optimizer: CodebookOptimizer | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step and one codebook update.

    Args:
      state: Before the step.
      batch: The global batch.
      model: The autoencoder.
      optimizer: The optimizer that made ``state.opt_state``.
      options: Randomness, augmentation and loss.
      codebook_optimizer: Takes steps on the codebook first, if given.

    Returns:
      The state after the step (its ``window`` untouched) and the metrics of the batch, measured before the step.
    """
    key = jax.random.fold_in(jax.random.key(options.seed), state.step)
    augment_key, quantizer_key = jax.random.split(key)
    images = augment(augment_key, batch["image"], flip=options.flip, crop_padding=options.crop_padding)
    images = to_model_range(images)

    if codebook_optimizer is not None:
        state = codebook_steps(state, images, model, codebook_optimizer)

    def decoder_loss(params: PyTree, vectors: Float[Array, "*batch dim"]) -> tuple[Float[Array, ""], Array]:
        reconstruction = model.apply({"params": params}, vectors, method="decode_vectors")
        error = jnp.mean(jnp.square(reconstruction - images))
        return options.reconstruction_scale * error, error

    def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, Any]]:
        (unquantized, output), collections = model.apply(
            {"params": params, **state.collections},
            images,
            method="quantize",
            train=True,
            mutable=list(state.collections),
            rngs={"quantizer": quantizer_key},
        )
        loss, error = loss_through_quantizer(
            options.encoder_gradient, decoder_loss, params, unquantized, output.quantized
        )
        loss += output.loss
        # Pixels span 2, so their peak signal is 2 squared.
        metrics = {"loss": loss, "reconstruction_mse": error, "psnr": 10 * jnp.log10(4 / error)}
        return loss, (metrics | output.metrics, collections)

    (_, (metrics, collections)), gradient = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    updates, task = optimizer.update(gradient, state.opt_state["task"], state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        collections=collections,
        opt_state=state.opt_state | {"task": task},
    )
    return state, metrics
