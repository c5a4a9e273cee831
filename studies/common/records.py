"""Results of a study: one line of JSON per finished run, which is not repeated."""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqjax.errors import UserError
from vqjax.runtime.files import atomic_file, strict_json

_SIGNIFICANT_DIGITS = 6


class Run(NamedTuple):
    """One run, finished or not.

    Attributes:
      name: Unique in its study, such as ``"collapse/remedies--none--fitting--seed0"``; the part before the slash
        groups runs.
      settings: Facts of the run, as plain JSON.
    """

    name: str
    settings: dict[str, Any]


class Record(NamedTuple):
    """One finished run.

    Attributes:
      run: Its name.
      settings: Facts of the run.
      measured: Results; None stands for a number that is not finite.
      seconds: Duration; of an interrupted run, since it was continued.
    """

    run: str
    settings: dict[str, Any]
    measured: dict[str, Any]
    seconds: float


class Results:
    """Records of a study in a file of JSON lines, sorted by the names of the runs.

    Args:
      path: The file; need not exist.

    Example:
      >>> import tempfile
      >>> results = Results(Path(tempfile.mkdtemp()) / "results.jsonl")
      >>> runs = [Run("fsq--seed0", {"seed": 0}), Run("fsq--seed1", {"seed": 1})]
      >>> results.add(runs[0], {"psnr": 24.0}, seconds=1.5)
      >>> results.unfinished(runs)
      [Run(name='fsq--seed1', settings={'seed': 1})]
      >>> results.records()[0].measured
      {'psnr': 24.0}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def records(self, group: str | None = None) -> list[Record]:
        """Read the records.

        Args:
          group: First part of the names of the runs; all by default.

        Returns:
          Records in the order of their names.

        Raises:
          UserError: A line of the file is not a record.
        """
        records = [record for record, _ in self._lines()]
        return [record for record in records if group is None or record.run.startswith(f"{group}/")]

    def unfinished(self, runs: Iterable[Run]) -> list[Run]:
        """Leave out the runs that have a record.

        Args:
          runs: Runs of the study.

        Returns:
          The runs still to do, in the same order.

        Raises:
          UserError: A record has the name of a run and other settings.
        """
        found = {record.run: record for record in self.records()}
        unfinished = []
        for run in runs:
            if run.name not in found:
                unfinished.append(run)
                continue
            stored, current = found[run.name].settings, json.loads(strict_json(run.settings))
            if stored != current:
                differing = [name for name in stored | current if stored.get(name) != current.get(name)]
                changes = ", ".join(f"{name}={stored.get(name)!r}, now {current.get(name)!r}" for name in differing)
                raise UserError(
                    f"{run.name} in {self.path} was made with {changes}. Delete that line, or use another --records."
                )
        return unfinished

    def add(self, run: Run, measured: Mapping[str, Any], seconds: float) -> None:
        """Add the record of a finished run, completely or not at all.

        Args:
          run: The run; a record of the same name is replaced.
          measured: Results by name; numbers are kept to six significant digits.
          seconds: Duration.
        """
        measured = _rounded(json.loads(strict_json(measured)))
        line = strict_json(Record(run.name, run.settings, measured, round(seconds, 2))._asdict())
        with _locked(self.path.parent):
            # Other lines are kept as they are, so that a diff shows new runs alone.
            lines = {record.run: text for record, text in self._lines()} | {run.name: line}
            with atomic_file(self.path) as file:
                file.write("".join(f"{lines[name]}\n" for name in sorted(lines)).encode())

    def _lines(self) -> Iterator[tuple[Record, str]]:
        if not self.path.exists():
            return
        for number, line in enumerate(self.path.read_text().splitlines(), start=1):
            try:
                yield Record(**json.loads(line)), line
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"Line {number} of {self.path} is not the record of a run. Delete it, and run the study again."
                ) from error


def slug(name: str) -> str:
    """Replace everything but lower-case letters and digits by underscores.

    Example:
      >>> slug("rotation, scale of at most 1")
      'rotation_scale_of_at_most_1'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make other processes wait before they change a file of the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    # The file itself cannot carry the lock: every change puts another one in its place.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(np.format_float_positional(value, _SIGNIFICANT_DIGITS, fractional=False, unique=False))
    return value
