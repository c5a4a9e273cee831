"""How much of a long list of cases is tried where a person waits for the tests."""

import os
from collections.abc import Iterable


def all_in_ci[Case](cases: Iterable[Case], few: int) -> list[Case]:
    """All cases in continuous integration; elsewhere a few, evenly chosen."""
    cases = list(cases)
    return cases if "CI" in os.environ else cases[:: max(1, len(cases) // few)][:few]
