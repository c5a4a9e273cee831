"""Vector-quantized autoencoder: an encoder, a quantizer and a decoder."""

from typing import Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.models.layers import apply_in_parts
from vqjax.quantizers import QuantizerOutput
from vqjax.quantizers.base import register_export, short_repr
from vqjax.quantizers.validation import require_choice

PixelsName = Literal["symmetric", "unit", "clip"]

Images = Float[Array, "batch *frames _ _ _"]
"""Images, or clips."""


class Pixels(NamedTuple):
    """The pixels of a network: those in [0, 1], less a mean, divided by a standard deviation.

    Attributes:
      mean: The mean, of each channel or of all.
      std: The standard deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, images: Images) -> Images:
        """Return the pixels of images in [-1, 1]."""
        if self == PIXELS["symmetric"]:
            return images
        mean, std = self._in(images)
        return ((images + 1) / 2 - mean) / std

    def to_images(self, pixels: Images) -> Images:
        """Return images in [-1, 1]."""
        if self == PIXELS["symmetric"]:
            return pixels
        mean, std = self._in(pixels)
        return 2 * (pixels * std + mean) - 1

    def _in(self, images: Images) -> Float[np.ndarray, "2 ..."]:
        return np.asarray(self, images.dtype).reshape(2, *(1,) * (images.ndim - 1), -1)


PIXELS: dict[str, Pixels] = {
    "symmetric": Pixels((0.5,), (0.5,)),
    "unit": Pixels((0.0,), (1.0,)),
    "clip": Pixels((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}
"""Pixels by name: ``symmetric`` is [-1, 1], ``unit`` [0, 1], and ``clip`` the normalization of CLIP, to four digits as
the official code of the rotation trick has it."""


@flax.struct.dataclass
class VQVAEOutput:
    """Output of one pass through the autoencoder.

    Attributes:
      reconstruction: Images of the input's shape.
      quantizer: Output of the quantizer for the encoder's latents.
    """

    reconstruction: Images
    quantizer: QuantizerOutput

    def __repr__(self) -> str:
        return short_repr(self)


register_export(VQVAEOutput)


class VQVAE(nn.Module):
    """Autoencoder composed of any compatible encoder, quantizer and decoder.

    Encoder and decoder may have variables in any collection, such as the statistics of a BatchNorm, and draw from
    random streams; the tasks of this package provide ``quantizer`` and ``dropout``. An argument ``train`` is passed on
    to those whose ``__call__`` accepts it.

    Attributes:
      encoder: Maps images ``[batch, height, width, channels]``, or clips, which have an axis of frames behind the
        first, to latents ``[batch, *grid, dim]``. That of clips has an attribute ``takes_clips``, which is True.
      quantizer: Any quantizer of this package.
      decoder: Maps codes ``[batch, *grid, dim]`` to images.
      pixels: Pixels of encoder and decoder, by their name in :data:`PIXELS`; images are in [-1, 1] in any case.
      precision: Precision of float32 products in encoder and decoder, by JAX's names: ``"default"`` uses TF32 on GPUs
        that support it, ``"float32"`` always uses full float32 precision. The quantizer sets its own precision.
      microbatches: Number of parts in which encoder and decoder process a batch, to save memory; the quantizer
        processes the whole batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> variables = jax.jit(model.init)(jax.random.key(0), images)
      >>> indices = model.apply(variables, images, method="encode")
      >>> indices.shape, model.apply(variables, indices, method="decode").shape
      ((2, 4, 4), (2, 16, 16, 3))

    Source: van den Oord et al., 2017 (arXiv 1711.00937).
    """

    encoder: nn.Module
    quantizer: nn.Module
    decoder: nn.Module
    pixels: PixelsName = "symmetric"
    precision: str = "default"
    microbatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pixels", self.pixels, PIXELS)

    def __call__(
        self, images: Images, mask: Bool[Array, " batch"] | None = None, *, train: bool | None = None
    ) -> VQVAEOutput:
        """Encode, quantize and decode images.

        Args:
          images: Images in [-1, 1].
          mask: True for images to include in the quantizer's losses and statistics; all by default.
          train: Update the codebook and other state; must be given if that changes anything.

        Returns:
          Reconstructions and the quantizer's output.
        """
        z = self.latents(images, train=train)
        if mask is not None:
            mask = jnp.broadcast_to(jnp.expand_dims(mask, range(1, z.ndim - 1)), z.shape[:-1])
        quantized = self.quantizer(z, mask, train=train)
        reconstruction = self.decode_latents(quantized.quantized, train=train)
        return VQVAEOutput(reconstruction=reconstruction, quantizer=quantized)

    def latents(self, images: Images, *, train: bool | None = None) -> Float[Array, "batch *grid dim"]:
        """Return the encoder's latents, before the quantizer.

        Raises:
          UserError: The images are not of a floating-point dtype.
        """
        if not (hasattr(images, "dtype") and jnp.issubdtype(images.dtype, jnp.floating)):
            found = getattr(images, "dtype", type(images).__name__)
            raise UserError(f"`images` must be floats in [-1, 1], got {found}; scale uint8 with x / 127.5 - 1.")
        with jax.default_matmul_precision(self.precision):
            pixels = PIXELS[self.pixels].of(images)
            return apply_in_parts(self.encoder, pixels, microbatches=self.microbatches, train=train)

    def decode_latents(self, latents: Float[Array, "batch *grid dim"], *, train: bool | None = None) -> Images:
        """Return images from latents, quantized or not."""
        with jax.default_matmul_precision(self.precision):
            pixels = apply_in_parts(self.decoder, latents, microbatches=self.microbatches, train=train)
            return PIXELS[self.pixels].to_images(pixels)

    def decode_features(
        self, latents: Float[Array, "batch *grid dim"], *, train: bool | None = None
    ) -> Float[Array, "batch *positions features"]:
        """Return the input of the decoder's last layer, for decoders that have one apart."""
        with jax.default_matmul_precision(self.precision):
            return apply_in_parts(self.decoder, latents, microbatches=self.microbatches, train=train, method="features")

    def to_images(self, features: Float[Array, "batch *positions features"]) -> Images:
        """Return images from the input of the decoder's last layer."""
        with jax.default_matmul_precision(self.precision):
            return PIXELS[self.pixels].to_images(self.decoder.to_images(features))

    def encode(self, images: Images) -> Int[Array, " batch *tokens"]:
        """Return the code indices of images in [-1, 1]."""
        return self.quantizer.encode(self.latents(images, train=False))

    def decode(self, indices: Integer[Array, " batch *tokens"]) -> Images:
        """Return images from code indices."""
        return self.decode_latents(self.quantizer.decode(indices), train=False)

    def reconstruct(self, images: Images) -> Images:
        """Return ``decode(encode(images))``."""
        return self.decode(self.encode(images))


def takes_clips(model: nn.Module) -> bool:
    """Return whether an autoencoder is one of clips, ``[batch, frames, height, width, channels]``.

    Args:
      model: The autoencoder.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import SonnetDecoder, SonnetEncoder
      >>> takes_clips(VQVAE(SonnetEncoder(), VectorQuantizer(num_codes=16), SonnetDecoder()))
      False
    """
    return getattr(model.encoder, "takes_clips", False)
