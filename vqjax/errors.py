"""Exception for invalid user input, and the wording its messages share."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid user input; the message says what must change.

    The command lines print the message alone and exit with status 2. Every other exception is a defect of the library
    and keeps its stack trace.
    """


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """End an error message with the nearest allowed name, or with all of them if none is near.

    Args:
      name: The name that was given.
      allowed: The names that may be given.

    Returns:
      The end of a sentence, with its question mark or period.

    Example:
      >>> did_you_mean("num_code", ["num_codes", "decay"])
      "did you mean 'num_codes'?"
      >>> did_you_mean("width", ["num_codes", "decay"])
      "use one of 'decay', 'num_codes'."
      >>> did_you_mean("width", [])
      'there is none.'
    """
    allowed = sorted(allowed)
    if not allowed:
        return "there is none."
    nearest = difflib.get_close_matches(name, allowed, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"use one of {', '.join(map(repr, allowed))}."


def one_line(error: BaseException) -> str:
    """Join the lines of an exception's message; the name of its type if it has none.

    Args:
      error: The exception.

    Returns:
      One line of at most 300 characters.

    Example:
      >>> one_line(ValueError("cut short\\n  at byte 7")), one_line(KeyError())
      ('cut short at byte 7', 'KeyError')
    """
    return " ".join(str(error).split())[:300] or type(error).__name__
