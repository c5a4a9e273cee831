"""Mean and spread of a number over seeds."""

import math
import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float | int | None]) -> tuple[float, float] | None:
    """The mean and the sample standard deviation (divisor n - 1).

    Args:
      values: One per seed; None for a run that gave no finite number.

    Returns:
      Both, over the runs that gave a number; the deviation of a single one is NaN. None if none did.

    Example:
      >>> mean_and_deviation([1.0, 2.0, 3.0, None])
      (2.0, 1.0)
    """
    finite = [float(value) for value in values if value is not None]
    if not finite:
        return None
    return statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else math.nan


def with_spread(values: Sequence[float | int | None]) -> str:
    """Writes mean ± sample standard deviation, to the first uncertain digit but one.

    Args:
      values: One per seed; None for a run that gave no finite number.

    Returns:
      Text for a table; a dash if there is no number.

    Example:
      >>> with_spread([23.01, 22.87, 23.4]), with_spread([184, 190, 171]), with_spread([0.0094]), with_spread([None])
      ('23.09 ± 0.27', '181.7 ± 9.7', '0.0094', '–')
    """
    both = mean_and_deviation(values)
    if both is None:
        return "–"
    mean, deviation = both
    if math.isnan(deviation):
        return f"{mean:.4g}"
    if deviation == 0:
        return f"{mean:.4g} ± 0"
    if not 1e-3 <= max(abs(mean), deviation) < 1e5:
        return f"{mean:.2e} ± {deviation:.1e}"
    decimals = max(0, 1 - math.floor(math.log10(deviation)))
    # A spread far below the mean would ask for more digits than anybody reads.
    decimals = min(decimals, max(0, 3 - math.floor(math.log10(abs(mean) or deviation))))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
