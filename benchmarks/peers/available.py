"""Which peers are installed, and what fits into memory."""

import importlib.util

import jax
import psutil

_MATRICES_OF_TORCH = 6
_MATRICES_OF_PLAIN = 3


def installed(module: str) -> bool:
    """Whether a Python package can be imported."""
    return importlib.util.find_spec(module) is not None


def fits(tokens: int, codes: int, of_torch: bool) -> bool:
    """Whether a peer's [tokens, codes] matrices fit into four fifths of a GPU's free memory, or half of a CPU's.

    Args:
      tokens: Number of tokens.
      codes: Number of codes.
      of_torch: vector-quantize-pytorch holds six of them, a plain form three.

    Returns:
      False where measuring would end in the machine's refusal.
    """
    matrices = _MATRICES_OF_TORCH if of_torch else _MATRICES_OF_PLAIN
    on_device = jax.local_devices()[0].memory_stats()
    free = on_device["bytes_limit"] if on_device else psutil.virtual_memory().available
    if on_device and of_torch:
        import torch

        # JAX has taken its share when it started.
        free = torch.cuda.mem_get_info()[0]
    return matrices * tokens * codes * 4 < (0.8 if on_device else 0.5) * free
