"""The results of a study: one JSON file per run, so that finished runs are not repeated."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqjax.errors import UserError
from vqjax.reporting import atomic_file, strict_json

_SIGNIFICANT_DIGITS = 6


class Record(NamedTuple):
    """One finished run.

    Attributes:
      settings: What was run, by name.
      measured: What came out; None stands for a number that is not finite.
      seconds: How long it took; where a run was interrupted, since it went on.
    """

    settings: dict[str, Any]
    measured: dict[str, Any]
    seconds: float


class Run(NamedTuple):
    """One run, finished or not.

    Attributes:
      path: Of its record.
      settings: What it does, in plain JSON.
    """

    path: Path
    settings: dict[str, Any]


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """Leaves out the runs whose results are there already.

    Args:
      runs: Of one study.

    Returns:
      Those still to do.

    Raises:
      UserError: Results of other settings are in the way.
    """
    return [run for run in runs if not is_finished(run.path, run.settings)]


def is_finished(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> bool:
    """Says whether a run's results are there already.

    Args:
      path: The run's file.
      settings: What the run would do now.

    Returns:
      True if the file holds the results of these settings, False if there is none.

    Raises:
      UserError: The file holds the results of other settings, or is no record.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "run.json"
      >>> is_finished(path, {"seed": 0})
      False
      >>> write_record(path, Record({"seed": 0}, {"psnr": 24.0}, 1.5))
      >>> is_finished(path, {"seed": 0})
      True
    """
    path = Path(path)
    if not path.exists():
        return False
    stored, wanted = read_record(path).settings, json.loads(strict_json(settings))
    if stored != wanted:
        differing = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
        changes = ", ".join(f"{name}={stored.get(name)!r}, now {wanted.get(name)!r}" for name in differing)
        raise UserError(f"{path} was made with {changes}. Delete it, or give another --output.")
    return True


def write_record(path: str | os.PathLike[str], record: Record) -> None:
    """Writes a run's results, whole or not at all; numbers are kept to six significant digits.

    Args:
      path: The run's file.
      record: The results.
    """
    measured = _rounded(json.loads(strict_json(record.measured)))
    content = record._replace(measured=measured, seconds=round(record.seconds, 2))._asdict()
    with atomic_file(path) as file:
        file.write(strict_json(content).encode() + b"\n")


def read_record(path: str | os.PathLike[str]) -> Record:
    """Reads a run's results.

    Args:
      path: The run's file.

    Returns:
      The results.

    Raises:
      UserError: The file is no record.
    """
    try:
        return Record(**json.loads(Path(path).read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not the record of a run. Delete it, and run the experiment again.") from error


def read_records(directory: str | os.PathLike[str]) -> list[Record]:
    """Reads all results of a directory, ordered by file name.

    Args:
      directory: Where the runs of one experiment are; may be missing.

    Returns:
      The results.
    """
    return [read_record(path) for path in sorted(Path(directory).glob("*.json"))]


def describe(value: Any) -> Any:
    """Says in plain JSON what an argument is, the same in every process.

    Args:
      value: Numbers, text, functions, partial functions, dataclasses and flax modules, nested in any way.

    Returns:
      Numbers, text, lists and dicts.

    Example:
      >>> describe({"init": functools.partial(max, 3), "decay": 0.9})
      {'init': 'max(3)', 'decay': 0.9}
    """
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, functools.partial):
        keywords = [f"{name}={describe(item)}" for name, item in value.keywords.items()]
        return f"{describe(value.func)}({', '.join([*map(str, map(describe, value.args)), *keywords])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # The two fields that flax adds to every module.
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        return f"{type(value).__name__}({', '.join(f'{name}={describe(getattr(value, name))}' for name in names)})"
    return getattr(value, "__qualname__", str(value)) if callable(value) else value


def slug(name: str) -> str:
    """A name as part of a file name.

    Example:
      >>> slug("rotation, scale of at most 1")
      'rotation_scale_of_at_most_1'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(np.format_float_positional(value, _SIGNIFICANT_DIGITS, fractional=False, unique=False))
    return value
