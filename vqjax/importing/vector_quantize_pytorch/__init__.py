"""Quantizers trained with vector-quantize-pytorch."""

from vqjax.importing.vector_quantize_pytorch.importer import vector_quantize_pytorch as vector_quantize_pytorch
