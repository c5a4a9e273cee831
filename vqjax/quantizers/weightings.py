"""Named weightings of commitment and codebook loss, for codes that are learned by gradient."""

import math
from typing import Any

from vqjax.functional.numbers import Number, is_number, to_scalar
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.validation import require


def standard(beta: Number = 0.25, **options: Any) -> dict[str, Any]:
    """Return the arguments of the original weighting: beta on the commitment, one on the codebook.

    Args:
      beta: At least 0.
      **options: Further options of the codebook.

    Returns:
      ``commitment_weight`` and ``codebook`` of a :class:`VectorQuantizer`.

    Example:
      >>> standard(0.25)["codebook"].weight
      1.0

    Source: van den Oord et al., 2017 (arXiv 1711.00937), eq. 3.
    """
    return _arguments(_checked(beta, math.inf), 1.0, options)


def taming_legacy(beta: Number = 0.25, **options: Any) -> dict[str, Any]:
    """Return the arguments of the reversed weighting: one on the commitment, beta on the codebook.

    It is that of taming-transformers with ``legacy=True``, and of latent diffusion.

    Args:
      beta: At least 0.
      **options: Further options of the codebook.

    Returns:
      ``commitment_weight`` and ``codebook`` of a :class:`VectorQuantizer`.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, **taming_legacy(0.25))
      >>> vq.commitment_weight, vq.codebook.weight
      (1.0, 0.25)

    Source: taming-transformers, ``VectorQuantizer2``; Table 3 of Fifty et al., ICLR 2025, is trained so.
    """
    return _arguments(1.0, _checked(beta, math.inf), options)


def vqtorch(beta: Number = 0.95, **options: Any) -> dict[str, Any]:
    """Return the arguments of the weighting of vqtorch: one minus beta on the commitment, beta on the codebook.

    Args:
      beta: In [0, 1].
      **options: Further options of the codebook.

    Returns:
      ``commitment_weight`` and ``codebook`` of a :class:`VectorQuantizer`.

    Example:
      >>> arguments = vqtorch(0.75, sync_nu=0.2)
      >>> arguments["commitment_weight"], arguments["codebook"].weight
      (0.25, 0.75)

    Source: Huh et al., ICML 2023.
    """
    return _arguments(1.0 - _checked(beta, 1.0), to_scalar(beta), options)


def _arguments(commitment_weight: Number, codebook_weight: Number, options: dict[str, Any]) -> dict[str, Any]:
    return {"commitment_weight": commitment_weight, "codebook": GradientCodebook(weight=codebook_weight, **options)}


def _checked(beta: Number, largest: Number) -> Number:
    in_range = is_number(beta, lambda beta: 0 <= beta <= largest and not math.isinf(beta))
    allowed = "at least 0" if math.isinf(largest) else f"in [0, {largest:g}]"
    require(in_range, "beta", beta, f"a number {allowed}", "use, for example, 0.25")
    return to_scalar(beta)
