"""SimVQ: fixed random codes in a learned basis."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from vqjax.quantizers.ema import EMA
from vqjax.quantizers.transforms import LinearTransform
from vqjax.quantizers.vector import VectorQuantizer

# Variance 1/dim: a code's expected squared length is one.
unit_scale_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)


class SimVQ(VectorQuantizer):
    r"""A :class:`VectorQuantizer` whose codes are one linear map of fixed random vectors.

    .. math:: e_k = W c_k,\quad c_k \sim \mathcal N(0, I/d)\ \text{fixed}

    The codebook loss moves :math:`W`, and with it all codes, those that no token chooses included: none die. Only
    defaults differ: ``codebook_update="none"``, ``codebook_transform=LinearTransform()`` (any other transform
    module may be given) and ``codebook_init``. Everything else is that of :class:`VectorQuantizer`.

    Variables:
      ``codebook["codes"]``, the fixed :math:`c_k`, and ``params["codebook_transform"]``, the transform's own.

    Example:
      >>> import jax
      >>> from vqjax import SimVQ
      >>> z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
      >>> vq = SimVQ(num_codes=16)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> slope = jax.grad(lambda params: vq.apply(variables | {"params": params}, z).loss)(variables["params"])
      >>> slope["codebook_transform"]["linear"]["kernel"].shape
      (4, 4)

    Source: Zhu et al., 2024 (arXiv 2411.02038).
    """

    codebook_update: Literal["ema", "gradient", "none"] | EMA = "none"
    codebook_init: Callable = unit_scale_normal
    # Without a parent, also where it is made inside of another module: it belongs to this one.
    codebook_transform: nn.Module | None = dataclasses.field(default_factory=lambda: LinearTransform(parent=None))
