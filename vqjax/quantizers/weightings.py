"""Named weightings of commitment and codebook loss."""

import math
import numbers

from vqjax.errors import UserError


def standard(beta: float = 0.25) -> dict[str, float]:
    """Beta on the commitment, one on the codebook.

    Args:
      beta: At least 0.

    Returns:
      ``commitment_weight`` and ``codebook_weight``.

    Example:
      >>> standard(0.25)
      {'commitment_weight': 0.25, 'codebook_weight': 1.0}

    Source: van den Oord et al., 2017 (arXiv 1711.00937), eq. 3.
    """
    return {"commitment_weight": _checked(beta, math.inf), "codebook_weight": 1.0}


def taming_legacy(beta: float = 0.25) -> dict[str, float]:
    """One on the commitment, beta on the codebook: taming-transformers with ``legacy=True``, and latent diffusion.

    Args:
      beta: At least 0.

    Returns:
      ``commitment_weight`` and ``codebook_weight``.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook_update="gradient", **taming_legacy(0.25))
      >>> vq.commitment_weight, vq.codebook_weight
      (1.0, 0.25)

    Source: taming-transformers, ``VectorQuantizer2``; Table 3 of Fifty et al., ICLR 2025, is trained so.
    """
    return {"commitment_weight": 1.0, "codebook_weight": _checked(beta, math.inf)}


def vqtorch(beta: float = 0.95) -> dict[str, float]:
    """One minus beta on the commitment, beta on the codebook.

    Args:
      beta: In [0, 1].

    Returns:
      ``commitment_weight`` and ``codebook_weight``.

    Example:
      >>> vqtorch(0.75)
      {'commitment_weight': 0.25, 'codebook_weight': 0.75}

    Source: Huh et al., ICML 2023.
    """
    return {"commitment_weight": 1.0 - _checked(beta, 1.0), "codebook_weight": float(beta)}


def _checked(beta: float, most: float) -> float:
    if not isinstance(beta, numbers.Real) or isinstance(beta, bool) or not 0 <= beta <= most or math.isinf(beta):
        allowed = "at least 0" if math.isinf(most) else f"in [0, {most:g}]"
        raise UserError(f"beta={beta!r} is not allowed: use a number {allowed}, such as 0.25.")
    return float(beta)
