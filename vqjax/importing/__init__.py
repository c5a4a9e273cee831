"""Importers for models trained with other libraries: each returns a model and its variables."""

from vqjax.importing.vector_quantize_pytorch import vector_quantize_pytorch as vector_quantize_pytorch
