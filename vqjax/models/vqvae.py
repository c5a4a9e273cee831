"""The vector-quantized autoencoder: an encoder, a quantizer and a decoder."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.models.layers import Images, in_microbatches
from vqjax.quantizers import QuantizerOutput


@flax.struct.dataclass
class VQVAEOutput:
    """The result of one pass through the autoencoder.

    Attributes:
      reconstruction: Images of the input's shape.
      quantizer: What the quantizer returned for the encoder's grid.
    """

    reconstruction: Images
    quantizer: QuantizerOutput


class VQVAE(nn.Module):
    """Joins any encoder, quantizer and decoder that fit together.

    Attributes:
      encoder: Images ``[batch, height, width, channels]`` to a grid ``[batch, rows, columns, dim]``.
      quantizer: Any quantizer of this package.
      decoder: The grid of codes back to images.
      precision: Of float32 products in encoder and decoder, one of JAX's names: ``"default"`` is TF32 on GPUs that have
        it, ``"float32"`` is exact on all. The quantizer chooses its own.
      microbatches: Parts in which encoder and decoder see a batch, to save memory; the quantizer sees it as a whole.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, code_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> variables = model.init(jax.random.key(0), images)
      >>> indices = model.apply(variables, images, method="encode")
      >>> indices.shape, model.apply(variables, indices, method="decode").shape
      ((2, 4, 4), (2, 16, 16, 3))

    Source: van den Oord et al., 2017 (arXiv 1711.00937).
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module
    precision: str = "default"
    microbatches: int = 1

    def __call__(
        self, images: Images, mask: Bool[Array, " batch"] | None = None, *, train: bool = False
    ) -> VQVAEOutput:
        """Encodes, quantizes and decodes images.

        Args:
          images: In [-1, 1].
          mask: True for the images whose tokens count; all by default.
          train: Update the codebook.

        Returns:
          Reconstructions and the quantizer's output.
        """
        z = self.latents(images)
        token_mask = None if mask is None else jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
        quantized = self.quantizer(z, token_mask, train=train)
        return VQVAEOutput(reconstruction=self.decode_vectors(quantized.quantized), quantizer=quantized)

    def quantize(
        self, images: Images, *, train: bool = False
    ) -> tuple[Float[Array, "batch rows columns dim"], QuantizerOutput]:
        """The first half of the call: the grid as it would be without quantization, and the quantizer's output."""
        z = self.latents(images)
        return self.quantizer.bypass(z), self.quantizer(z, train=train)

    def decode_vectors(self, vectors: Float[Array, "batch rows columns dim"]) -> Images:
        """The second half: images from a grid of vectors, quantized or not."""
        with jax.default_matmul_precision(self.precision):
            return in_microbatches(self.decoder, vectors, self.microbatches)

    def encode(self, images: Images) -> Int[Array, " batch *tokens"]:
        """Turns images in [-1, 1] into a grid of code indices."""
        return self.quantizer.encode(self.latents(images))

    def decode(self, indices: Integer[Array, " batch *tokens"]) -> Images:
        """Turns a grid of code indices into images."""
        return self.decode_vectors(self.quantizer.decode(indices))

    def reconstruct(self, images: Images) -> Images:
        """Passes images through the tokens: ``decode(encode(images))``."""
        return self.decode(self.encode(images))

    def latents(self, images: Images) -> Float[Array, "batch rows columns dim"]:
        """Returns the encoder's grid, before the quantizer."""
        with jax.default_matmul_precision(self.precision):
            return in_microbatches(self.encoder, images, self.microbatches)
