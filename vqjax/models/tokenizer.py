"""A trained autoencoder with its variables: images to tokens and back."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from vqjax.models.layers import Images


@dataclass(frozen=True)
class Tokenizer:
    """A model bound to its trained variables.

    Attributes:
      model: The autoencoder.
      variables: Its variables.
      config: The config it was trained with, as a plain dictionary.
      step: The training step of the variables.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, code_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> tokenizer = Tokenizer(model, model.init(jax.random.key(0), images), config={}, step=0)
      >>> tokenizer.decode(tokenizer.encode(images)).shape
      (2, 16, 16, 3)
    """

    model: nn.Module
    variables: Any
    config: dict[str, Any]
    step: int

    def encode(self, images: Float[Array | np.ndarray, "batch height width channels"]) -> Int[Array, " batch *tokens"]:
        """Turns images in [-1, 1] into code indices."""
        return _apply(self.model, self.variables, jnp.asarray(images), "encode")

    def decode(self, indices: Integer[Array | np.ndarray, " batch *tokens"]) -> Images:
        """Turns code indices into images, in [-1, 1] up to what the decoder overshoots."""
        return _apply(self.model, self.variables, jnp.asarray(indices), "decode")


@jax.jit(static_argnames=("model", "method"))
def _apply(model: nn.Module, variables: Any, x: Array, method: str) -> Array:
    return model.apply(variables, x, method=method)
