"""Importers for models trained with other libraries: each returns a model and its variables."""

from vqjax.importing.magvit import maskgit as maskgit
from vqjax.importing.magvit import open_magvit2 as open_magvit2
from vqjax.importing.rotation_trick import rotation_trick as rotation_trick
from vqjax.importing.transformer import llamagen_transformer as llamagen_transformer
from vqjax.importing.transformer import taming_transformer as taming_transformer
from vqjax.importing.vector_quantize_pytorch import vector_quantize_pytorch as vector_quantize_pytorch
from vqjax.importing.vit_vqgan import enhancing_transformers as enhancing_transformers
from vqjax.importing.vqgan import diffusers as diffusers
from vqjax.importing.vqgan import ibq as ibq
from vqjax.importing.vqgan import llamagen as llamagen
from vqjax.importing.vqgan import taming as taming
from vqjax.importing.vqgan import to_diffusers as to_diffusers
