"""Quantizers that were trained elsewhere, as variables of this package."""

from vqjax.importing.vector_quantize_pytorch import from_vector_quantize_pytorch

__all__ = ["from_vector_quantize_pytorch"]
