"""Encoders, decoders, and the autoencoder that joins them with a quantizer."""

from vqjax.models.cnn import ResidualDecoder, ResidualEncoder, SonnetDecoder, SonnetEncoder
from vqjax.models.features import VGG16, AlexNet
from vqjax.models.magvit import MAGVITDecoder, MAGVITEncoder
from vqjax.models.resnet import ResNet
from vqjax.models.timesformer import TimeSformerDecoder, TimeSformerEncoder
from vqjax.models.vit import ViTDecoder, ViTEncoder
from vqjax.models.vqgan import VQGANDecoder, VQGANEncoder
from vqjax.models.vqvae import VQVAE, VQVAEOutput

__all__ = [
    "VGG16",
    "VQVAE",
    "AlexNet",
    "MAGVITDecoder",
    "MAGVITEncoder",
    "ResNet",
    "ResidualDecoder",
    "ResidualEncoder",
    "SonnetDecoder",
    "SonnetEncoder",
    "TimeSformerDecoder",
    "TimeSformerEncoder",
    "VQGANDecoder",
    "VQGANEncoder",
    "VQVAEOutput",
    "ViTDecoder",
    "ViTEncoder",
]
