"""What the residual quantizers refuse, and why."""

from collections.abc import Callable, Sequence

import flax.linen as nn

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator, requirements
from vqjax.quantizers.checks import (
    check_flags,
    check_template,
    is_count,
    is_number,
    requirement,
    takes_condition,
)


def check_levels(module: nn.Module) -> None:
    """Refuses settings of the levels that every residual quantizer has.

    Args:
      module: A ``ResidualQuantizer``.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """
    require = requirement(module)
    require(is_count(module.num_quantizers), "num_quantizers", "use a whole number of at least 1.")
    require(module.gradient in ("total", "per_level"), "gradient", "use 'total' or 'per_level'.")
    require(is_number(module.dropout) and 0 <= module.dropout <= 1, "dropout", "use a probability in [0, 1].")
    for name in ("fewest_levels", "multiple_of"):
        value = getattr(module, name)
        require(
            is_count(value) and value <= module.num_quantizers,
            name,
            f"use a whole number in [1, {module.num_quantizers}], the number of quantizers.",
        )


def check_residual(rvq: nn.Module) -> None:
    """Refuses arguments of a ``ResidualVQ`` that are out of range or have no effect with the others.

    Args:
      rvq: The module.

    Raises:
      UserError: The first such argument, its value and what is allowed.
    """
    require = requirement(rvq)
    check_template(rvq)
    check_flags(rvq)
    check_levels(rvq)
    implicit = rvq.implicit_codebooks
    require(implicit is None or takes_condition(implicit), "implicit_codebooks", "use ImplicitCodebook(...), or None.")
    _check_sizes(rvq, require)
    for name in ("beam_size", "beam_size_eval"):
        require(getattr(rvq, name) is None or is_count(getattr(rvq, name)), name, "use a whole number of at least 1.")
    template = rvq.quantizer
    if template.heads > 1:
        raise UserError(
            f"quantizer.heads={template.heads} is not allowed in a residual quantizer: use GroupedResidualVQ, which "
            "splits the features first."
        )
    if rvq.gradient == "total":
        _check_total(rvq)
    if rvq.implicit_codebooks is not None:
        require(
            template.codebook_update == "gradient" and template.codebook_transform is None,
            "implicit_codebooks",
            "the quantizer needs codebook_update='gradient' and no codebook_transform of its own.",
        )
        require(
            not rvq.shared_codebook, "shared_codebook", "implicit codebooks belong to a level. Choose one of the two."
        )
    searches = max(rvq.beam_size, rvq.beam_size_eval or 1) > 1
    if searches and template.sampling_temperature > 0:
        raise UserError(
            f"quantizer.sampling_temperature={template.sampling_temperature} is not allowed with a beam search, which "
            "chooses the codes. Choose one of the two."
        )
    if searches and chooses_codes(get_estimator(template.estimator)):
        raise UserError(
            f"quantizer.estimator={template.estimator!r} chooses the codes itself, and so does a beam search. Choose "
            "one of the two."
        )


def _check_sizes(rvq: nn.Module, require: Callable) -> None:
    sizes = rvq.level_sizes
    if sizes is not None:
        require(
            isinstance(sizes, Sequence) and len(sizes) == rvq.num_quantizers and all(is_count(size) for size in sizes),
            "level_sizes",
            f"use {rvq.num_quantizers} whole numbers of at least 1, one per level.",
        )
        require(not rvq.shared_codebook, "level_sizes", "a shared codebook has the size of the template. Leave it out.")
    require(rvq.code_dim is None or is_count(rvq.code_dim), "code_dim", "use a whole number of at least 1, or None.")


def _check_total(rvq: nn.Module) -> None:
    template = rvq.quantizer
    estimator = get_estimator(template.estimator)
    one_codebook = chooses_codes(estimator) or "indices" in requirements(estimator)
    if one_codebook:
        raise UserError(
            f"quantizer.estimator={template.estimator!r} needs the codebook of a level, and gradient='total' crosses "
            "all levels at once: use gradient='per_level', or another estimator."
        )
    if template.code_dim is not None:
        raise UserError(
            f"quantizer.code_dim={template.code_dim} projects within each level, and those projections learn only "
            "where the gradient crosses in each level: use gradient='per_level', or ResidualVQ(code_dim=...)."
        )
