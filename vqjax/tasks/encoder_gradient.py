"""Where the encoder's gradient comes from: the estimator, or the decoder's loss itself."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, PyTree

from vqjax.estimators import exact_gradient, hessian_gradient

Vectors = Float[Array, "*batch dim"]
DecoderLoss = Callable[[PyTree, Vectors], tuple[Float[Array, ""], Any]]

ENCODER_GRADIENTS = {"hessian": hessian_gradient, "exact": exact_gradient}
"""Gradients that need the decoder's loss, by their name in a config."""


def loss_through_quantizer(
    encoder_gradient: str, decoder_loss: DecoderLoss, params: PyTree, unquantized: Vectors, quantized: Vectors
) -> tuple[Float[Array, ""], Any]:
    """The decoder's loss at the codes, with the gradient to the encoder that was asked for.

    Args:
      encoder_gradient: ``"estimator"``: what the quantizer's estimator passes on; else a key of
        ``ENCODER_GRADIENTS``.
      decoder_loss: Of parameters and vectors; returns a scalar and what else it has to say.
      params: Of the decoder.
      unquantized: The encoder's vectors in the decoder's space.
      quantized: The codes chosen for them.

    Returns:
      What ``decoder_loss(params, quantized)`` returns.
    """
    if encoder_gradient == "estimator":
        return decoder_loss(params, quantized)
    return ENCODER_GRADIENTS[encoder_gradient](decoder_loss, params, unquantized, quantized)
