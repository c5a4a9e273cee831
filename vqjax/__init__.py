"""Vector quantization for JAX: quantizers for Flax models, trained through a repaired rotation trick."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from vqjax import estimators as estimators
from vqjax import functional as functional
from vqjax.errors import UserError as UserError
from vqjax.quantizers import BSQ as BSQ
from vqjax.quantizers import FSP as FSP
from vqjax.quantizers import FSQ as FSQ
from vqjax.quantizers import IBQ as IBQ
from vqjax.quantizers import LFQ as LFQ
from vqjax.quantizers import BinaryMapper as BinaryMapper
from vqjax.quantizers import EMACodebook as EMACodebook
from vqjax.quantizers import FrozenCodebook as FrozenCodebook
from vqjax.quantizers import GradientCodebook as GradientCodebook
from vqjax.quantizers import Grouped as Grouped
from vqjax.quantizers import ImplicitCodebook as ImplicitCodebook
from vqjax.quantizers import LatentQuantizer as LatentQuantizer
from vqjax.quantizers import LearnedAffine as LearnedAffine
from vqjax.quantizers import LinearTransform as LinearTransform
from vqjax.quantizers import MultiScaleVQ as MultiScaleVQ
from vqjax.quantizers import ProductVQ as ProductVQ
from vqjax.quantizers import QuantizerOutput as QuantizerOutput
from vqjax.quantizers import RandomProjectionQuantizer as RandomProjectionQuantizer
from vqjax.quantizers import Replacement as Replacement
from vqjax.quantizers import Residual as Residual
from vqjax.quantizers import ResidualVQ as ResidualVQ
from vqjax.quantizers import RunningAffine as RunningAffine
from vqjax.quantizers import SimVQ as SimVQ
from vqjax.quantizers import VectorQuantizer as VectorQuantizer
from vqjax.quantizers import VQBridge as VQBridge

# Loaded where they are used: they need Orbax and the configs of the trainer, which `import vqjax` does without.
if TYPE_CHECKING:
    from vqjax.checkpointing.checkpoints import load_tokenizer as load_tokenizer
    from vqjax.models.tokenizer import Tokenizer as Tokenizer

    __version__: str
else:
    _LAZY = {"Tokenizer": "vqjax.models.tokenizer", "load_tokenizer": "vqjax.checkpointing.checkpoints"}

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        if name == "__version__":
            return importlib.metadata.version("vqjax")
        raise AttributeError(f"module 'vqjax' has no attribute {name!r}")
