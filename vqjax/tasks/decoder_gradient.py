"""Encoder gradients computed from the decoder's loss, as baselines for the gradient estimators."""

import dataclasses
from typing import Literal

import jax
import optax
from jaxtyping import Array, Float, Key, PyTree

from vqjax.data import Batch, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.estimators import exact_gradient, hessian_gradient
from vqjax.models import VQVAE
from vqjax.models.tokenizer import NETWORK
from vqjax.quantizers import QuantizerOutput
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics
from vqjax.tasks.vqvae import VQVAETask, image_metrics

DECODER_GRADIENTS = {"hessian": hessian_gradient, "exact": exact_gradient}
"""Encoder gradients computed from the decoder's loss, by name."""


@dataclasses.dataclass(frozen=True)
class DecoderGradientTask(VQVAETask):
    """The VQ-VAE task with the encoder's gradient taken from the decoder's loss instead of the quantizer's estimator.

    Each step needs a second pass through the decoder, which must be stateless: no variables other than its parameters.
    The other attributes are those of :class:`vqjax.tasks.vqvae.VQVAETask`.

    Attributes:
      gradient: ``"exact"``: gradient of the decoder's loss at the unquantized latents; ``"hessian"``: gradient at the
        codes, extrapolated to the latents with the Hessian.

    Source: Fifty et al., ICLR 2025, Table 1.
    """

    _: dataclasses.KW_ONLY
    gradient: Literal["exact", "hessian"] = "exact"

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        state = super().init(key, batch)
        if stateful := [name for name, tree in state.variables[NETWORK].items() if "decoder" in tree]:
            raise UserError(
                "model must have a decoder without state for the task 'decoder_gradient', got state in the collections "
                f"{stateful}; use the task 'vqvae'."
            )
        return state

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one optimizer step and one codebook update; see :meth:`Task.train_step`."""
        augment_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, pixels_of(batch)))
        rngs = {"quantizer": quantizer_key, "dropout": dropout_key}
        model = self.model_at(state.step)

        def decoder_loss(params: PyTree, latents: Array) -> tuple[Float[Array, ""], Array]:
            decode = {"method": "decode_latents", "train": True, "rngs": rngs}
            reconstruction = model.apply({"params": params}, latents, **decode)
            return self.loss(reconstruction, images), reconstruction

        def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, PyTree]]]:
            (latents, output), variables = model.apply(
                {"params": params, **state.variables[NETWORK]},
                images,
                method=_quantize,
                mutable=list(state.variables[NETWORK]),
                rngs=rngs,
            )
            # The value of the loss is that of the codes, but its gradient bypasses the quantizer and reaches the
            # latents directly.
            loss, reconstruction = DECODER_GRADIENTS[self.gradient](decoder_loss, params, latents, output.quantized)
            loss += output.loss
            return loss, ({"loss": loss, **image_metrics(reconstruction, images), **output.metrics}, variables)

        gradient, (metrics, variables) = jax.grad(loss_function, has_aux=True)(state.params[NETWORK])
        metrics |= {"gradient_norm": optax.tree.norm(gradient), **self.scheduled(state.step)}
        state = state.apply_gradient(NETWORK, gradient, self.optimizer, variables)
        return state.finish_step(self.ema_decay), metrics


def _quantize(model: VQVAE, images: Array) -> tuple[Float[Array, "batch *grid dim"], QuantizerOutput]:
    """The latents as they would be decoded without quantization, and the quantizer's output."""
    z = model.latents(images, train=True)
    return model.quantizer.bypass(z), model.quantizer(z, train=True)
