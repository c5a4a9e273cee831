"""Names given on the command line of a study."""

from collections.abc import Sequence

from vqjax.errors import UserError
from vqjax.training.config import nearest_name


def chosen(names: Sequence[str], allowed: Sequence[str], flag: str) -> list[str]:
    """Checks names that were given on the command line.

    Args:
      names: As given; none stands for all.
      allowed: All there are.
      flag: The name of the flag.

    Returns:
      The names.

    Raises:
      UserError: One of them is unknown.

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
