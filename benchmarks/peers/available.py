"""Which peers are installed, and what fits into memory."""

import importlib.util
from typing import Literal

import jax
import psutil

_MATRICES = {"product": 1, "plain": 3, "torch": 6}


def installed(module: str) -> bool:
    """Whether a Python package can be imported."""
    return importlib.util.find_spec(module) is not None


def fits(tokens: int, codes: int, contender: Literal["product", "plain", "torch"]) -> bool:
    """Whether a peer's [tokens, codes] matrices fit into four fifths of a GPU's free memory, or half of a CPU's.

    Args:
      tokens: Number of tokens.
      codes: Number of codes.
      contender: ``"product"`` of tokens and codes holds one, a ``"plain"`` form three, vector-quantize-pytorch
        (``"torch"``) six.

    Returns:
      False where measuring would end in the machine's refusal.
    """
    on_device = jax.local_devices()[0].memory_stats()
    free = on_device["bytes_limit"] if on_device else psutil.virtual_memory().available
    if on_device and contender == "torch":
        import torch

        # Without what JAX has taken.
        free = torch.cuda.mem_get_info()[0]
    return _MATRICES[contender] * tokens * codes * 4 < (0.8 if on_device else 0.5) * free
