"""Discovery of a run's checkpoints: the newest intact one."""

import contextlib
import itertools
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from absl import logging
from orbax.checkpoint.experimental import v1 as ocp

from vqjax.checkpointing.integrity import CHECKSUMS_FILE, find_damage
from vqjax.errors import UserError, one_line
from vqjax.runtime.processes import assert_same_on_all_processes
from vqjax.runtime.workdir import SHARE_THE_WORKDIR

CHECKPOINTS, DAMAGED = "checkpoints", "damaged_checkpoints"
FORMAT = 2
"""Version of the checkpoint format. Version 1, which release 0.1.0 wrote, is not marked with a number."""


class CheckpointInfo(NamedTuple):
    """An intact checkpoint: its files match their checksums or, if it has no checksums, its metadata can be read.

    Attributes:
      step: Training step at which it was saved.
      config: Config of the run.
      images: Fingerprint of the training images.
      eval_images: Fingerprint of the held-out images; None where it was not written.
      versions: Versions of the packages that wrote it, by name.
      not_better: Metric that the run is kept for and its mode, and how many checkpoints in a row were not better.
      passed_over: Reasons why later checkpoints are not used, by step.
      class_names: Classes of the training images, in the order of their labels; None where they are not known.
      tokens: Facts of the tokens that the run was trained on; None for runs on images, and where they are not known.
    """

    step: int
    config: dict[str, Any]
    images: str
    eval_images: str | None
    versions: dict[str, str]
    not_better: tuple[str | None, str | None, int]
    passed_over: dict[int, str]
    class_names: tuple[str, ...] | None = None
    tokens: dict[str, Any] | None = None


def find_checkpoint(workdir: Path, step: int | None = None) -> CheckpointInfo | None:
    """Find the newest intact checkpoint of a run.

    A run that was killed between writing a checkpoint and its checksums leaves one without them; it is used only
    if no other is intact.

    Args:
      workdir: Directory of the run.
      step: Consider only the checkpoint of this step; by default, all of them.

    Returns:
      The checkpoint; None if the run has none at all.

    Raises:
      UserError: There are checkpoints but none is intact, there is no checkpoint for ``step``, or the checkpoint has
        the format of a different release.
    """
    steps = checkpoint_steps(workdir)
    # Processes that disagree here would deadlock inside Orbax.
    assert_same_on_all_processes("newest checkpoint", max(steps, default=0), SHARE_THE_WORKDIR)
    if not steps:
        return None
    if step is not None and step not in steps:
        raise UserError(f"--step must be one of {steps}, the checkpoints of --workdir={workdir}, got {step}.")
    candidates = steps if step is None else [step]
    reasons = {number: "it is not a directory" for number in candidates if not directory_of(workdir, number).is_dir()}
    for candidate in _in_order_of_trust(workdir, [number for number in candidates if number not in reasons]):
        directory = directory_of(workdir, candidate)
        try:
            has_checksums = (directory / CHECKSUMS_FILE).exists()
            if has_checksums and (damage := find_damage(directory)) is not None:
                raise ValueError(damage)
            metadata = _read_metadata(workdir, candidate)
        except Exception as error:
            # Orbax raises many exception types for damaged files; keep the reason on one line.
            reasons[candidate] = one_line(error)
            continue
        _check_format(workdir, metadata)
        later = [other for other in steps if other > candidate] if step is None else []
        unchecked = f"it has no {CHECKSUMS_FILE}"
        return CheckpointInfo(
            candidate,
            metadata["config"],
            metadata["images"],
            metadata.get("eval_images"),
            metadata["versions"],
            tuple(metadata.get("not_better", (None, None, 0))),
            passed_over={other: reasons.get(other, unchecked) for other in later},
            class_names=None if (names := metadata.get("class_names")) is None else tuple(names),
            tokens=metadata.get("tokens"),
        )
    listed = "; ".join(f"{number}: {reason}" for number, reason in reasons.items())
    raise UserError(
        f"No checkpoint in {workdir / CHECKPOINTS} is intact ({listed}). Restore the directory from a backup, or train "
        "from scratch in another --workdir."
    )


def best_step(workdir: Path) -> int:
    """Return the step of the checkpoint with the best metric, the latest of equal ones.

    Args:
      workdir: Directory of the run.

    Returns:
      The step.

    Raises:
      UserError: The run does not keep the best checkpoint, or has none with a metric yet.
    """
    newest = find_checkpoint(workdir)
    config = {} if newest is None else newest.config
    if config.get("keep_best") is None:
        raise UserError(
            f"--workdir must be the directory of a run with config.keep_best for --best, got {workdir}; give --step."
        )
    try:
        with contextlib.closing(ocp.training.Checkpointer((workdir / CHECKPOINTS).resolve())) as checkpointer:
            best = best_of(checkpointer, config["keep_best"], config["keep_best_mode"])
    except Exception as error:  # Orbax raises many types for damaged files
        raise UserError(
            f"The metrics of the checkpoints in --workdir={workdir} cannot be read ({one_line(error)}); give --step."
        ) from error
    if best is None:
        raise UserError(f"--workdir must hold an evaluated checkpoint for --best, got {workdir}; give --step.")
    return best[1]


def best_of(
    checkpointer: ocp.training.Checkpointer, name: str, mode: Literal["max", "min"]
) -> tuple[float, int] | None:
    """Return score and step of the checkpoint with the best value of a metric, the latest of equal ones, or None.

    Args:
      checkpointer: The checkpoints.
      name: The metric.
      mode: Whether its best value is the largest or the smallest.
    """
    found = [(score(saved.metrics, name, mode), saved.step) for saved in checkpointer.checkpoints if saved.metrics]
    return max(found, default=None)


def score(metrics: Mapping[str, Any], name: str, mode: Literal["max", "min"]) -> float:
    """Return a metric as a number of which the largest is the best; minus infinity where it is missing.

    Args:
      metrics: Numbers of an evaluation by name.
      name: The metric.
      mode: Whether its best value is the largest or the smallest.

    Example:
      >>> score({"psnr": 24.5}, "psnr", "max"), score({"mse_01": 0.5}, "mse_01", "min"), score({}, "ssim", "max")
      (24.5, -0.5, -inf)
    """
    value = metrics.get(name)
    if value is None:
        return -math.inf
    return value if mode == "max" else -value


def set_aside(workdir: Path, info: CheckpointInfo) -> None:
    """Move the checkpoints that were skipped out of the directory, so that new ones can be written, and log each move.

    Args:
      workdir: Directory of the run.
      info: Result of :func:`find_checkpoint`.
    """
    for step, reason in info.passed_over.items():
        names = itertools.chain([str(step)], (f"{step}.{number}" for number in itertools.count(1)))
        place = next(path for name in names if not (path := workdir / DAMAGED / name).exists())
        place.parent.mkdir(exist_ok=True)
        # Not a renaming, as `checkpoints` may be a link to another mount.
        shutil.move(directory_of(workdir, step), place)
        logging.warning("checkpoint %d is not intact (%s); moved it to %s. Inspect or delete it.", step, reason, place)


def directory_of(workdir: Path, step: int) -> Path:
    return workdir / CHECKPOINTS / str(step)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of all checkpoints of a run, intact or not, in order.

    Args:
      workdir: Directory of the run.

    Raises:
      UserError: A file lies in the place of the directory of checkpoints.
    """
    directory = workdir / CHECKPOINTS
    if (directory.exists() or directory.is_symlink()) and not directory.is_dir():
        raise UserError(f"{directory} must be a directory; move away the file in its place.")
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    # A save that was killed leaves a directory with a different name. Names such as "060" are copies, not checkpoints.
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def _in_order_of_trust(workdir: Path, steps: list[int]) -> list[int]:
    return sorted(steps, key=lambda step: ((directory_of(workdir, step) / CHECKSUMS_FILE).exists(), step), reverse=True)


def _read_metadata(workdir: Path, step: int) -> dict[str, Any]:
    # Not through a Checkpointer, which fails where any other checkpoint is damaged.
    metadata = ocp.metadata(directory_of(workdir, step).resolve()).custom_metadata
    if metadata is None or not {"config", "images", "versions"} <= metadata.keys():
        raise ValueError("its metadata is damaged")
    return metadata


def _check_format(workdir: Path, metadata: dict[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        release = metadata["versions"]["vqjax"]
        raise UserError(
            f"--workdir={workdir} contains checkpoints written by vqjax {release}, which this release cannot read; "
            f"continue the run with vqjax=={release}, or train in another --workdir."
        )
