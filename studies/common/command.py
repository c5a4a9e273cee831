"""Command-line flags that the studies share."""

from collections.abc import Sequence

from absl import flags

from vqjax.errors import UserError
from vqjax.training.config import nearest_name


def define_flags(study: str) -> None:
    """Declares the flags of every study.

    Args:
      study: Name of its package in ``studies``.
    """
    flags.DEFINE_string("records", f"studies/{study}", "Directory of results.jsonl.")
    flags.DEFINE_string("docs", "docs", "Directory of the document and, in a directory of their own, its figures.")
    flags.DEFINE_bool("report_only", False, "Run nothing; rebuild document and figures from the records.")


def chosen(names: Sequence[str], allowed: Sequence[str], flag: str) -> list[str]:
    """Checks names that were given on the command line.

    Args:
      names: Names as given; an empty list stands for all.
      allowed: All names that exist.
      flag: Name of the flag.

    Returns:
      The names.

    Raises:
      UserError: A name is unknown.

    Example:
      >>> chosen([], ["betas", "sizes"], "tables")
      ['betas', 'sizes']
      >>> chosen(["rotatoin"], ["rotation", "straight_through"], "variants")
      Traceback (most recent call last):
      vqjax.errors.UserError: --variants='rotatoin' is unknown: did you mean 'rotation'?
    """
    for name in names:
        if name not in allowed:
            raise UserError(f"--{flag}={name!r} is unknown{nearest_name(name, allowed)}")
    return list(names) or list(allowed)
