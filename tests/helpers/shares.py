"""How much of long lists of cases is tried: all of it with ``pytest --full``, a share without."""

from collections.abc import Iterable

FULL = False
"""Set by ``tests/conftest.py`` before tests are collected."""


def all_if_full[Case](cases: Iterable[Case], few: int) -> list[Case]:
    """All cases with ``--full``; a few, evenly chosen, without."""
    cases = list(cases)
    return cases if FULL else cases[:: max(1, len(cases) // few)][:few]


def examples(full: int, few: int) -> int:
    """The number of random examples."""
    return full if FULL else few
