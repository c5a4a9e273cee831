"""Markdown documents with generated parts, and the tables and numbers that fill them."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import scipy.stats

from vqjax.errors import UserError
from vqjax.runtime.files import atomic_file


def mean_and_deviation(values: Sequence[float | int | None]) -> tuple[float, float] | None:
    """Compute the mean and the sample standard deviation (divisor n - 1).

    Args:
      values: One number per seed; None for a run without a finite number.

    Returns:
      Both over the finite numbers, or None if there are none. The deviation of a single number is NaN.

    Example:
      >>> mean_and_deviation([1.0, 2.0, 3.0, None])
      (2.0, 1.0)
    """
    finite = [float(value) for value in values if value is not None]
    if not finite:
        return None
    return statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else math.nan


def with_spread(values: Sequence[float | int | None]) -> str:
    """Format mean ± sample standard deviation, with two digits of the deviation.

    Args:
      values: One number per seed; None for a run without a finite number.

    Returns:
      Text for a table; a dash where no number is finite.

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
    # A deviation far below the mean would ask for more digits than anybody reads.
    decimals = min(decimals, max(0, 3 - math.floor(math.log10(abs(mean) or deviation))))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def with_interval(differences: Sequence[float]) -> str:
    """Format a mean and its 95 % interval, by Student's distribution.

    Args:
      differences: One per pair of runs, at least two.

    Returns:
      Text for a table.

    Example:
      >>> with_interval([1.0, 2.0, 3.0])
      '+2.0 [-0.5, +4.5]'
    """
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.fmean(differences)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def percent(share: float | None) -> float | None:
    """Turn a share into percent; None stays.

    Example:
      >>> percent(0.25), percent(None)
      (25.0, None)
    """
    return None if share is None else 100 * share


def fill(document: str, parts: Mapping[str, str]) -> str:
    """Replace the generated parts of a document.

    Args:
      document: Markdown with ``<!-- generated: NAME -->`` and ``<!-- end -->`` around each part.
      parts: New content by name.

    Returns:
      The document. Filling it again with the same parts gives the same text.

    Raises:
      UserError: The document lacks one of the parts.

    Example:
      >>> text = "Before\\n<!-- generated: numbers -->\\nold\\n<!-- end -->\\nAfter"
      >>> print(fill(text, {"numbers": "new"}))
      Before
      <!-- generated: numbers -->
      new
      <!-- end -->
      After
    """
    for name, content in parts.items():
        pattern = rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)"
        document, count = re.subn(
            pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", document, flags=re.S
        )
        if count == 0:
            raise UserError(
                f"The document has no part {name!r}: put the lines '<!-- generated: {name} -->' and '<!-- end -->' "
                "at its place."
            )
    return document


def write_document(path: Path, title: str, parts: Mapping[str, str]) -> Path:
    """Fill the generated parts of a document on disk; a missing document is created from these parts alone.

    Args:
      path: The document.
      title: Heading of a document that is created.
      parts: Content by name.

    Returns:
      The path.
    """
    text = path.read_text() if path.exists() else skeleton(title, list(parts))
    with atomic_file(path) as file:
        file.write(fill(text, parts).encode())
    return path


def skeleton(title: str, names: Sequence[str]) -> str:
    """Make an empty document of generated parts.

    Args:
      title: Its heading.
      names: Names of the parts.

    Returns:
      Markdown.

    Example:
      >>> print(skeleton("Results", ["numbers"]))
      # Results
      <BLANKLINE>
      <!-- generated: numbers -->
      <!-- end -->
      <BLANKLINE>
    """
    return "\n\n".join([f"# {title}", *(f"<!-- generated: {name} -->\n<!-- end -->" for name in names)]) + "\n"


def not_measured(study: str, scale: str = "cpu") -> str:
    """Say which command measures what a document does not have yet.

    Args:
      study: Name of the study.
      scale: Its scale; ``"cpu"`` is the default of its command.

    Example:
      >>> not_measured("generation", "full")
      'Not measured yet: `python -m studies.generation --scale=full`'
    """
    return f"Not measured yet: `python -m studies.{study}{'' if scale == 'cpu' else f' --scale={scale}'}`"
