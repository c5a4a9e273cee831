"""Every quantizer at about 8 bits per latent vector, as a config: settings to compare them on one model."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vqjax.quantizers.registry import defaults

# Codes used less than a tenth of the average become latents of the batch.
_REPLACED = {"codebook": {"name": "ema", "dead_code_threshold": 0.1, "replace": {"below": 0.1}}}
# With rotation the linear map of all codes uses a quarter as many of them (docs/quantizers.md).
_STRAIGHT = {"estimator": "straight_through"}
# Without commitment features grow until no temperature tells them apart, and most codes are lost.
_BOUNDED_BITS = {"commitment_weight": 0.25, "inverse_temperature": 10.0}


def _vq(num_codes: int) -> dict[str, Any]:
    return defaults("vq", num_codes=num_codes, **_REPLACED)


def _grouped(quantizer: dict[str, Any]) -> dict[str, Any]:
    return defaults("grouped", quantizer=quantizer, groups=2)


def _residual(quantizer: dict[str, Any]) -> dict[str, Any]:
    name = "residual_vq" if quantizer["name"] == "vq" else "residual"
    return defaults(name, quantizer=quantizer, num_quantizers=2)


RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "vq": _vq(256),
        "product_vq": defaults("product_vq", num_codes=16, heads=2, **_REPLACED),
        "residual_vq": _residual(_vq(16)),
        "grouped_residual_vq": _grouped(_residual(_vq(4))),
        "sim_vq": defaults("sim_vq", num_codes=256, **_STRAIGHT),
        "residual_sim_vq": _residual(defaults("sim_vq", num_codes=16, **_STRAIGHT)),
        "ibq": defaults("ibq", num_codes=256, regularizers={"entropy_penalty": {"weight": 0.05}}),
        "fsq": defaults("fsq", levels=(8, 6, 5)),
        "residual_fsq": _residual(defaults("fsq", levels=(4, 4))),
        "grouped_residual_fsq": _grouped(_residual(defaults("fsq", levels=(4,)))),
        "fsp": defaults("fsp", levels=(8, 6, 5)),
        "latent": defaults("latent", levels=(8, 6, 5)),
        "lfq": defaults("lfq", bits=8, **_BOUNDED_BITS),
        "bsq": defaults("bsq", bits=8),
        "residual_lfq": _residual(defaults("lfq", bits=4, **_BOUNDED_BITS)),
        "grouped_residual_lfq": _grouped(_residual(defaults("lfq", bits=2, **_BOUNDED_BITS))),
        # One logit per bit: the model's latent_dim has to be the same. No price for information, as for a code.
        "binary_mapper": defaults("binary_mapper", bits=8, free_nats=8 * math.log(2)),
        "random_projection": defaults("random_projection", num_codes=256, codebook_dim=16),
        # The last scale has to be the side of the latent grid.
        "multi_scale_vq": defaults("multi_scale_vq", quantizer=_vq(256), scales=(1, 2, 4, 8)),
    }
)
"""Arguments of :func:`vqjax.quantizers.build` by name; the codes of all stages and groups together are about 2**8."""
