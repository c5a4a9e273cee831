"""Checks before a run continues from a checkpoint: same config, same images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vqjax.checkpointing.discovery import CheckpointInfo
from vqjax.errors import UserError
from vqjax.tasks.registry import TASKS
from vqjax.training.config import complete, task_with_absolute_paths

MUTABLE_FIELDS = frozenset(
    {"num_steps", "log_every", "eval_every", "checkpoint_every", "steps_per_dispatch"}
    | {"keep_checkpoints", "keep_every", "keep_best", "keep_best_mode", "patience"}
    | {"gradient_accumulation", "parameter_shards", "nonfinite", "tensorboard", "wandb"}
    | {"data.name", "data.resident_limit_mb"}
)
"""Config fields that may change when a run resumes: none changes a step by more than rounding. A task may add some.

Where images lie may change, as ``check_images`` compares the images themselves.
"""


def check_config(workdir: Path, info: CheckpointInfo | None, config: ConfigDict) -> None:
    """Refuse to resume a run with a different config.

    Args:
      workdir: Directory of the run.
      info: Its newest checkpoint; a run without one fits any config.
      config: The complete config.

    Raises:
      UserError: A field that matters differs, or the run is longer already.
    """
    if info is None:
        return
    if config.num_steps < info.step:
        raise UserError(
            f"config.num_steps must be at least {info.step}, the steps that the run in --workdir={workdir} has taken, "
            f"got {config.num_steps}; use another --workdir to start a new run."
        )
    # A field that is newer than the checkpoint had its default. JSON makes lists of tuples, in both.
    before = complete(info.config)
    before.task = task_with_absolute_paths(before.task)
    saved, given = (_flat(json.loads(json.dumps(fields.to_dict()))) for fields in (before, config))
    mutable = MUTABLE_FIELDS | TASKS[config.task.name].mutable_fields
    depends_on_length = any(
        value != "constant" and saved[f"{name}_steps"] is None
        for name, value in saved.items()
        if name.startswith("optimizer.") and name.endswith(".schedule")
    )
    if depends_on_length:
        mutable -= {"num_steps"}
    for name in sorted((saved.keys() | given.keys()) - mutable):
        if saved.get(name) != given.get(name):
            reason = ", on which its learning rates depend" if name == "num_steps" else ""
            raise UserError(
                f"config.{name} must be {saved.get(name)!r}, as in the run that --workdir={workdir} holds{reason}, got "
                f"{given.get(name)!r}; use another --workdir to start a new run."
            )


def check_images(workdir: Path, info: CheckpointInfo | None, images: str, eval_images: str | None = None) -> None:
    """Refuse to resume a run on different images, wherever they lie.

    Args:
      workdir: Directory of the run.
      info: Its newest checkpoint; a run without one fits any images.
      images: Fingerprint of the training images.
      eval_images: Fingerprint of the held-out images; None if they do not matter.

    Raises:
      UserError: A fingerprint differs from that in the checkpoint.
    """
    if info is None:
        return
    pairs = [("training", info.images, images)]
    if None not in (info.eval_images, eval_images):
        pairs.append(("held-out", info.eval_images, eval_images))
    for name, saved, given in pairs:
        if saved != given:
            raise UserError(
                f"The {name} images must be those of the run that --workdir={workdir} holds ({saved}), got {given}; "
                "restore them, or use another --workdir to start a new run."
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
