"""Encoders, decoders, and the autoencoder that joins them with a quantizer."""

from vqjax.models.autoencoder import VQVAE, VQVAEOutput
from vqjax.models.residual import ResidualDecoder, ResidualEncoder
from vqjax.models.sonnet import SonnetDecoder, SonnetEncoder

__all__ = ["VQVAE", "ResidualDecoder", "ResidualEncoder", "SonnetDecoder", "SonnetEncoder", "VQVAEOutput"]
