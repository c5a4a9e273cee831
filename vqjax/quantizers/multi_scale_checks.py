"""What the multi-scale quantizer refuses, and why."""

from collections.abc import Sequence

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator, requirements
from vqjax.quantizers.checks import check_flags, check_template, is_count, is_number, requirement, takes_condition


def sizes(scale: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """The size along each axis of space.

    Args:
      scale: One number for all axes, or one per axis.
      spatial_dims: Number of axes.

    Returns:
      One number per axis.
    """
    return (scale,) * spatial_dims if is_count(scale) else tuple(scale)


def check_shape(name: str, value: object, spatial_dims: int) -> None:
    """Refuses what is not the size of a map.

    Args:
      name: Of the argument.
      value: What was passed.
      spatial_dims: Number of axes of space.

    Raises:
      UserError: It is neither a number nor one number per axis.
    """
    each = isinstance(value, Sequence) and len(value) == spatial_dims and all(is_count(size) for size in value)
    if not (is_count(value) or each):
        raise UserError(
            f"{name}={value!r} is not allowed: use a whole number of at least 1, or {spatial_dims} of them, one per "
            "axis of space."
        )


def check_multi_scale(vq: nn.Module) -> None:
    """Refuses constructor arguments that are out of range or have no effect with the others.

    Args:
      vq: A ``MultiScaleVQ``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """

    require = requirement(vq)
    check_template(vq)
    check_flags(vq)
    require(is_count(vq.spatial_dims) and vq.spatial_dims <= 3, "spatial_dims", "use 1, 2 or 3.")
    require(isinstance(vq.scales, Sequence) and len(vq.scales) > 0, "scales", "use at least one scale, such as (1, 2).")
    for scale in vq.scales:
        check_shape("a scale", scale, vq.spatial_dims)
    shapes = np.array([sizes(scale, vq.spatial_dims) for scale in vq.scales])
    require(bool(np.all(np.diff(shapes, axis=0) >= 0)), "scales", "go from coarse to fine: no size may decrease.")
    require(is_number(vq.refinement) and 0 <= vq.refinement <= 1, "refinement", "use a number in [0, 1], such as 0.5.")
    count = len(vq.scales)
    whole = vq.num_refinements == 0 and is_number(vq.num_refinements)
    require(
        whole or (is_count(vq.num_refinements) and vq.num_refinements <= count),
        "num_refinements",
        f"use a whole number in [1, {count}], the number of scales, or 0 for one per scale.",
    )
    require(vq.gradient in ("total", "per_scale"), "gradient", "use 'total' or 'per_scale'.")
    require(is_number(vq.dropout) and 0 <= vq.dropout <= 1, "dropout", "use a probability in [0, 1].")
    require(
        is_count(vq.fewest_scales) and vq.fewest_scales <= count,
        "fewest_scales",
        f"use a whole number in [1, {count}], the number of scales.",
    )
    _check_template(vq)


def check_space(vq: nn.Module, z: Float[Array, "*space dim"]) -> None:
    """Refuses an input without the axes of space.

    Args:
      vq: A ``MultiScaleVQ``.
      z: The input.

    Raises:
      UserError: It has too few axes, or none of size one or more.
    """
    space = z.shape[-1 - vq.spatial_dims : -1]
    if z.ndim <= vq.spatial_dims or 0 in space:
        raise UserError(
            f"z has shape {z.shape}: it needs {vq.spatial_dims} axes of space (spatial_dims) of at least one position "
            "before its features."
        )


def _check_template(vq: nn.Module) -> None:
    template, estimator = vq.quantizer, get_estimator(vq.quantizer.estimator)
    if template.heads > 1:
        raise UserError(f"quantizer.heads={template.heads} is not allowed: a token of a scale has one index. Use 1.")
    if takes_condition(template.codebook_transform):
        name = type(template.codebook_transform).__name__
        raise UserError(f"quantizer.codebook_transform={name} is not allowed: the scales have no condition for it.")
    if vq.shared_codebook and chooses_codes(estimator):
        raise UserError(
            f"quantizer.estimator={template.estimator!r} chooses the codes itself, and a shared codebook is updated "
            "with the codes of all scales: use shared_codebook=False, or another estimator."
        )
    if vq.gradient == "per_scale":
        return
    if requirements(estimator) & {"codes", "indices", "num_codes"}:
        raise UserError(
            f"quantizer.estimator={template.estimator!r} needs the codebook of a scale, and gradient='total' crosses "
            "all scales at once: use gradient='per_scale', or another estimator."
        )
    if template.code_dim is not None:
        raise UserError(
            f"quantizer.code_dim={template.code_dim} projects within each scale, and those projections learn only "
            "where the gradient crosses in each scale: use gradient='per_scale', or project outside."
        )
