"""The share of the tests that `pytest` alone runs."""

from collections import defaultdict
from collections.abc import Iterable
from zlib import crc32

import pytest

FULL = False
"""True where everything runs; set by ``tests/conftest.py`` before tests are collected."""


def share(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Tests without the mark ``full``, one case of each parametrized one, and half of the examples in docstrings.

    Each has another case, and always the same.
    """
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("full"):
            functions[item.nodeid.partition("[")[0]].append(item)
    kept = {cases[crc32(name.encode()) % len(cases)] for name, cases in functions.items()}
    return {item for item in kept if not isinstance(item, pytest.DoctestItem) or crc32(item.nodeid.encode()) % 2}


def examples(full: int, few: int) -> int:
    """The number of random examples."""
    return full if FULL else few
