"""Which checkpoint of a run to read: the newest that is whole."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from orbax.checkpoint.experimental import v1 as ocp

from vqjax.checkpointing.integrity import CHECKSUMS_FILE, find_damage
from vqjax.errors import UserError
from vqjax.runtime.processes import assert_same_on_all_processes
from vqjax.runtime.workdir import SHARE_THE_WORKDIR

CHECKPOINTS, DAMAGED = "checkpoints", "damaged_checkpoints"


class FoundCheckpoint(NamedTuple):
    """A checkpoint whose files are what was written.

    Attributes:
      step: The training step it was saved at.
      config: The run's config, by name.
      images: The fingerprint of the training images.
      versions: Of the packages that wrote it.
      passed_over: Why not a later one, by its step.
    """

    step: int
    config: dict[str, Any]
    images: str
    versions: dict[str, str]
    passed_over: dict[int, str]


def find_checkpoint(workdir: Path, step: int | None = None) -> FoundCheckpoint | None:
    """Finds the newest checkpoint of a run that is whole.

    One without checksums was written by an older release, or its run was killed between writing it and them; it is
    only read where no other is whole.

    Args:
      workdir: The run's directory.
      step: Look at this checkpoint alone.

    Returns:
      The checkpoint; None if the run has none at all.

    Raises:
      UserError: There are checkpoints and none is whole, or there is none of ``step``.
    """
    steps = _steps(workdir)
    # Processes that went on with different answers would wait for each other inside of Orbax.
    assert_same_on_all_processes("newest checkpoint", max(steps, default=0), SHARE_THE_WORKDIR)
    if not steps:
        return None
    if step is not None and step not in steps:
        raise UserError(f"--step={step} is no checkpoint of --workdir={workdir}: use one of {steps}.")
    wanted = steps if step is None else [step]
    reasons = {number: "it is no directory" for number in wanted if not _directory(workdir, number).is_dir()}
    for candidate in _in_order_of_trust(workdir, [number for number in wanted if number not in reasons]):
        directory = _directory(workdir, candidate)
        try:
            has_checksums = (directory / CHECKSUMS_FILE).exists()
            if has_checksums and (damage := find_damage(directory)) is not None:
                raise ValueError(damage)
            metadata = _read_metadata(workdir, candidate)
        except Exception as error:
            # Orbax raises many types for damaged files; the reader needs the first reason.
            reasons[candidate] = first_line(error)
            continue
        later = [other for other in steps if other > candidate] if step is None else []
        unchecked = f"it has no {CHECKSUMS_FILE}"
        return FoundCheckpoint(candidate, **metadata, passed_over={s: reasons.get(s, unchecked) for s in later})
    told = "; ".join(f"{number}: {reason}" for number, reason in reasons.items())
    raise UserError(
        f"{workdir / CHECKPOINTS} is damaged ({told}). Restore it from a copy, or train again in another --workdir."
    )


def set_aside(workdir: Path, found: FoundCheckpoint) -> None:
    """Moves what was passed over out of the way of the checkpoints that will be written, and says so.

    Args:
      workdir: The run's directory.
      found: Of :func:`find_checkpoint`.
    """
    for step, reason in found.passed_over.items():
        names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(1)))
        place = next(path for name in names if not (path := workdir / DAMAGED / name).exists())
        place.parent.mkdir(exist_ok=True)
        _directory(workdir, step).rename(place)
        logging.warning("checkpoint %d is damaged (%s): moved to %s, for you to look at or delete", step, reason, place)


def first_line(error: Exception) -> str:
    """The first line of what an exception says, of a length that can be shown."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def open_checkpoints(workdir: Path) -> Iterator[ocp.training.Checkpointer]:
    """Opens the checkpoints of a run for reading."""
    checkpointer = ocp.training.Checkpointer((workdir / CHECKPOINTS).resolve())
    try:
        yield checkpointer
    finally:
        checkpointer.close()


def _directory(workdir: Path, step: int) -> Path:
    return workdir / CHECKPOINTS / str(step)


def _steps(workdir: Path) -> list[int]:
    directory = workdir / CHECKPOINTS
    if (directory.exists() or directory.is_symlink()) and not directory.is_dir():
        raise UserError(f"{directory} is no directory, so no checkpoint fits in it. Move it away.")
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    # A save that was killed has left a directory of another name; and a copy such as 060 is none of ours.
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _in_order_of_trust(workdir: Path, steps: list[int]) -> list[int]:
    return sorted(steps, key=lambda step: ((_directory(workdir, step) / CHECKSUMS_FILE).exists(), step), reverse=True)


def _read_metadata(workdir: Path, step: int) -> dict[str, Any]:
    with open_checkpoints(workdir) as checkpointer:
        metadata = checkpointer.metadata(step).custom_metadata
    names = ("config", "images", "versions")
    if metadata is None or not set(names) <= metadata.keys():
        raise ValueError("its metadata are damaged")
    return {name: metadata[name] for name in names}
