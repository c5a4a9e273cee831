"""Models that were trained elsewhere, as a model and its variables."""

from vqjax.importing.vector_quantize_pytorch import vector_quantize_pytorch as vector_quantize_pytorch
