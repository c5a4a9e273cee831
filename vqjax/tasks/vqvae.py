"""Training of a vector-quantized autoencoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, PyTree, UInt8

from vqjax.data import Batch, to_model_range
from vqjax.errors import UserError
Metric = object  # TODO
from vqjax.models import VQVAE
from vqjax.reporting import comparison_sheet
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics, Task

NETWORK = "generator"
"""Name of the autoencoder among the networks of a state, here and in tasks that add others to it."""

_EVALUATED_SCALARS = ("quantization_error", "codebook_loss", "commitment_loss")
_LATENTS_PER_CODE = 64
_MOST_LATENTS = 2**18


class VQVAETask(Task):
    """Reconstruction loss plus the quantizer's own, with one optimizer for encoder, decoder and what the quantizer learns.

    Args:
      model: The autoencoder, with the number of microbatches of a training step.
      optimizer: Optimizer of its parameters.
      loss: Reconstruction loss of two batches of images in [-1, 1].
      augment: Augmentation of uint8 images, given a key.
      kmeans_init: Start the codebook of a new run from clusters of the untrained encoder's latents.
      ema_decay: Decay of a moving average of the parameters, which is evaluated and saved in their place; None for none.

    Raises:
      UserError: ``ema_decay`` is out of range, or the quantizer has no k-means start.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> task = VQVAETask(model, optax.adam(1e-3), loss=lambda x, y: jnp.mean((x - y) ** 2))
      >>> batch = {"image": jnp.zeros((2, 16, 16, 3), jnp.uint8)}
      >>> state = task.init(jax.random.key(0), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
      >>> int(state.step), bool(metrics["loss"] > 0)
      (1, True)

    Source: van den Oord et al., 2017 (arXiv 1711.00937).
    """

    mutable_fields = frozenset({"quantizer.codebook_shards"})

    def __init__(
        self,
        model: VQVAE,
        optimizer: optax.GradientTransformation,
        loss: Callable[[Array, Array], Float[Array, ""]],
        augment: Callable[[Key[Array, ""], Array], Array] = lambda key, images: images,
        *,
        kmeans_init: bool = False,
        ema_decay: float | None = None,
    ) -> None:
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(f"ema_decay must be above 0 and below 1, got {ema_decay}; use None for no average.")
        if kmeans_init and not hasattr(model.quantizer, "kmeans_init"):
            raise UserError(f"kmeans_init must be False for {type(model.quantizer).__name__}, got True.")
        self.model, self.optimizer, self.loss, self.augment = model, optimizer, loss, augment
        self.kmeans_init, self.ema_decay = kmeans_init, ema_decay

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        params_key, quantizer_key = jax.random.split(key)
        # As one program: it is cached between starts, unlike hundreds of small ones.
        init = jax.jit(self.model.init)
        variables = init({"params": params_key, "quantizer": quantizer_key}, to_model_range(batch["image"]))
        params = {NETWORK: variables.pop("params")}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            variables={NETWORK: variables},
            opt_state={NETWORK: self.optimizer.init(params[NETWORK])},
            ema_params=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one optimizer step and one codebook update; see :meth:`Task.train_step`."""
        augment_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, batch["image"]))

        def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, PyTree]]]:
            # The codes are those before this step's update, which is among the variables that come back.
            output, variables = self.model.apply(
                {"params": params, **state.variables[NETWORK]},
                images,
                train=True,
                mutable=list(state.variables[NETWORK]),
                rngs={"quantizer": quantizer_key, "dropout": dropout_key},
            )
            loss = self.loss(output.reconstruction, images) + output.quantizer.loss
            metrics = {"loss": loss, **_image_metrics(output.reconstruction, images), **output.quantizer.metrics}
            return loss, (metrics, variables)

        gradient, (metrics, variables) = jax.grad(loss_function, has_aux=True)(state.params[NETWORK])
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        state = state.apply_gradient(NETWORK, gradient, self.optimizer, variables)
        return state.finish_step(self.ema_decay), metrics

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return images, reconstructions and code indices; see :meth:`Task.evaluate`."""
        images = to_model_range(batch["image"])
        output = self.model.clone(microbatches=1).apply(state.evaluated(NETWORK), images, batch["valid"])
        scalars = output.quantizer.metrics
        return {
            "image": images,
            "reconstruction": output.reconstruction,
            "indices": output.quantizer.indices,
            "valid": batch["valid"],
            **{name: scalars[name] for name in _EVALUATED_SCALARS if name in scalars},
        }


def _image_metrics(reconstruction: Array, images: Array) -> Metrics:
    error = jnp.mean(jnp.square(reconstruction - images))
    # Pixels span 2, so their peak signal is 2 squared.
    return {"reconstruction_mse": error, "psnr": 10 * jnp.log10(4 / error)}
