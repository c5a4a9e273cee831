"""The share of the tests that `pytest` alone runs."""

from collections import defaultdict
from collections.abc import Iterable

import pytest

FULL = False
"""True where everything runs; set by ``tests/conftest.py`` before tests are collected."""

MOST_CASES = 2
"""Of a parametrized test."""


def share(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Tests without the mark ``full``, and a few cases of each parametrized one, from its first to its last."""
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("full"):
            functions[item.nodeid.partition("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for cases in functions.values():
        few = min(MOST_CASES, len(cases))
        kept.update(cases[i * (len(cases) - 1) // max(1, few - 1)] for i in range(few))
    return kept


def examples(full: int, few: int) -> int:
    """The number of random examples."""
    return full if FULL else few
