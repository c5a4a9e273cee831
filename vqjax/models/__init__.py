"""Encoders, decoders, and the autoencoder that joins them with a quantizer."""

from vqjax.models.cnn import ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.vqvae import VQVAE, VQVAEOutput

__all__ = ["VQVAE", "ResidualDecoder", "ResidualEncoder", "SonnetDecoder", "SonnetEncoder", "VQVAEOutput"]
