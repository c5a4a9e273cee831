"""Settings of every quantizer for about 8 bits per latent vector, to try one after the other on the same model."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from vqjax.errors import UserError
from vqjax.quantizers.registry import FAMILIES
from vqjax.training.config import default_config, nearest_name

_REPLACED = {"replace_dead_codes": True, "dead_code_threshold": 0.1}
# With rotation the linear map of all codes uses a quarter as many of them (docs/quantizers.md).
_STRAIGHT = {"estimator": "straight_through"}
# Without commitment features grow until no temperature tells them apart, and most codes are lost.
_BOUNDED_BITS = {"commitment_weight": 0.25, "inverse_temperature": 10.0}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "vector": {"num_codes": 256} | _REPLACED,
        "product_vq": {"num_codes": 16, "heads": 2} | _REPLACED,
        "residual_vq": {"num_codes": 16, "num_quantizers": 2} | _REPLACED,
        "grouped_residual_vq": {"num_codes": 4, "num_quantizers": 2, "groups": 2} | _REPLACED,
        "sim_vq": {"num_codes": 256} | _STRAIGHT,
        "residual_sim_vq": {"num_codes": 16, "num_quantizers": 2} | _STRAIGHT,
        "ibq": {"num_codes": 256, "entropy_weight": 0.05},
        "fsq": {"levels": (8, 6, 5)},
        "residual_fsq": {"levels": (4, 4), "num_quantizers": 2},
        "grouped_residual_fsq": {"levels": (4,), "num_quantizers": 2, "groups": 2},
        "fsp": {"levels": (8, 6, 5)},
        "latent": {"levels": (8, 6, 5)},
        "lfq": {"bits": 8} | _BOUNDED_BITS,
        "bsq": {"bits": 8},
        "residual_lfq": {"bits": 4, "num_quantizers": 2} | _BOUNDED_BITS,
        "grouped_residual_lfq": {"bits": 2, "num_quantizers": 2, "groups": 2} | _BOUNDED_BITS,
        "binary_mapper": {"bits": 8, "free_nats": 8 * math.log(2)},
        "random_projection": {"num_codes": 256, "code_dim": 16},
        "multi_scale_vq": {"num_codes": 256} | _REPLACED,
    }
)
"""What differs from :func:`vqjax.training.config.default_config`, by the quantizer's name."""


def use_preset(config: ConfigDict, name: str) -> None:
    """Makes a config use another quantizer, and what of the model depends on it.

    Args:
      config: With its image size and model; the group ``quantizer`` is replaced.
      name: Of the quantizer.

    Raises:
      UserError: No quantizer has that name.

    Example:
      >>> config = default_config()
      >>> use_preset(config, "multi_scale_vq")
      >>> config.quantizer.num_codes, config.quantizer.scales
      (256, (1, 2, 4, 8))
    """
    if name not in FAMILIES:
        raise UserError(f"config argument quantizer={name!r} is unknown{nearest_name(name, FAMILIES)}")
    config.quantizer = default_config().quantizer
    config.quantizer.update({"name": name} | dict(PRESETS[name]))
    if name == "binary_mapper":
        config.model.code_dim = config.quantizer.bits
    if name == "multi_scale_vq":
        config.quantizer.scales = doubled_scales(config.data.image_size // 2**config.model.num_scalings)


def doubled_scales(side: int) -> tuple[int, ...]:
    """Sides of token grids that double, and end with the given one.

    Args:
      side: Of the latent grid.

    Returns:
      Whole numbers, coarse to fine.

    Example:
      >>> doubled_scales(16), doubled_scales(12)
      ((1, 2, 4, 8, 16), (1, 2, 4, 8, 12))
    """
    return (*(2**power for power in range((side - 1).bit_length())), side)
