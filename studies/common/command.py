"""Command-line flags that the studies share."""

from collections.abc import Sequence
from pathlib import Path

from studies.common.records import slug
from vqjax.errors import UserError, did_you_mean
from vqjax.runtime.paths import local_path


def chosen(names: Sequence[str], allowed: Sequence[str], flag: str) -> list[str]:
    """Find names that were given on the command line.

    Args:
      names: Names as given, or as they are in names of files: a list of names is divided at commas, which some have; an
        empty list stands for all.
      allowed: All names that exist.
      flag: Name of the flag.

    Returns:
      The names.

    Raises:
      UserError: A name is unknown.

    Example:
      >>> chosen([], ["betas", "sizes"], "tables")
      ['betas', 'sizes']
      >>> chosen(["rotation_scale_of_at_most_1"], ["rotation", "rotation, scale of at most 1"], "variants")
      ['rotation, scale of at most 1']
      >>> chosen(["rotatoin"], ["rotation", "straight_through"], "variants")
      Traceback (most recent call last):
      vqjax.errors.UserError: --variants='rotatoin' is unknown; did you mean 'rotation'?
    """
    by_slug = {slug(name): name for name in allowed}
    for name in names:
        if slug(name) not in by_slug:
            raise UserError(f"--{flag}={name!r} is unknown; {did_you_mean(name, allowed)}")
    return [by_slug[slug(name)] for name in names] or list(allowed)


def check_positive(**counts: int) -> None:
    """Refuse counts below 1.

    Args:
      **counts: Values by the names of their flags.

    Raises:
      UserError: The first such count.
    """
    for flag, count in counts.items():
        if count < 1:
            raise UserError(f"--{flag} must be at least 1, got {count}.")


def local_paths(**paths: str) -> list[Path]:
    """Return the places in the local file system that flags name.

    Args:
      **paths: Values by the names of their flags.

    Returns:
      The paths, in the same order.

    Raises:
      UserError: One of them is not local; the message names its flag.

    Example:
      >>> [path.as_posix() for path in local_paths(records="studies/rotation", docs="docs")]
      ['studies/rotation', 'docs']
    """
    return [local_path(path, f"--{name}") for name, path in paths.items()]
