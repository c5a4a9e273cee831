"""Trained tokenizers: images to code indices and back."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt8

from vqjax.models.layers import Images

NETWORK = "generator"
"""Key of the tokenizer among the networks of a training state; adversarial tasks train it as their generator."""


@dataclass(frozen=True)
class Tokenizer:
    """An autoencoder bound to its trained variables.

    Attributes:
      model: The autoencoder.
      variables: Trained variables of ``model``, with all collections.
      config: The config it was trained with, as a plain dictionary.
      step: The training step at which the variables were saved.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> images = np.zeros((2, 16, 16, 3), np.uint8)
      >>> tokenizer = Tokenizer(model, model.init(jax.random.key(0), jnp.zeros(images.shape)), config={}, step=0)
      >>> tokenizer.decode(tokenizer.encode(images)).shape
      (2, 16, 16, 3)
    """

    model: nn.Module
    variables: Any
    config: dict[str, Any]
    step: int

    def encode(
        self,
        images: Float[Array | np.ndarray, "batch height width channels"]
        | UInt8[Array | np.ndarray, "batch height width channels"],
    ) -> Int[Array, " batch *tokens"]:
        """Return the code indices of images, given as uint8 or as floats in [-1, 1]."""
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1
        return _apply(self.model, self.variables, images, "encode")

    def decode(self, indices: Integer[Array | np.ndarray, " batch *tokens"]) -> Images:
        """Return images from code indices, nominally in [-1, 1]; a decoder without an output bound may exceed it."""
        return _apply(self.model, self.variables, jnp.asarray(indices), "decode")


@jax.jit(static_argnames=("model", "method"))
def _apply(model: nn.Module, variables: Any, x: Array, method: str) -> Array:
    return model.apply(variables, x, method=method)
