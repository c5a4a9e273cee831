"""Whether a run may go on from the checkpoint that was found."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import WHERE_CODES_ARE_SEARCHED
from vqjax.checkpointing.discovery import FoundCheckpoint
from vqjax.errors import UserError
from vqjax.training.config import complete

CHANGEABLE = frozenset(
    {"num_steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "steps_per_dispatch"}
    | {"gradient_accumulation", "nonfinite", "tensorboard", "wandb"}
    | {f"quantizer.{name}" for name in WHERE_CODES_ARE_SEARCHED}
)
"""Config fields that may differ between a run and its continuation: none changes a step by more than rounding."""


def check_config(workdir: Path, found: FoundCheckpoint | None, config: ConfigDict) -> None:
    """Refuses to continue a run with another config.

    Args:
      workdir: The run's directory.
      found: Its newest checkpoint; a run without one fits any config.
      config: What was asked for now.

    Raises:
      UserError: The first field that differs and matters, with both values; or the run is already longer.
    """
    if found is None:
        return
    if config.num_steps < found.step:
        raise UserError(
            f"config.num_steps={config.num_steps} is not allowed: the run in --workdir={workdir} has taken "
            f"{found.step} steps. Use {found.step} or more, or another --workdir to start a new run."
        )
    # As it was written: JSON makes lists of tuples.
    # A field that was added since then has its default.
    before = complete(found.config)
    saved, given = (_flat(json.loads(json.dumps(fields.to_dict()))) for fields in (before, config))
    fixed = {"num_steps"} if config.optimizer.schedule == "cosine" else set()
    for name in sorted(saved.keys() | given.keys()):
        if (name in fixed or name not in CHANGEABLE) and saved.get(name) != given.get(name):
            reason = ", on which its learning rates depend (optimizer.schedule=cosine)" if name in fixed else ""
            raise UserError(
                f"config.{name}={given.get(name)!r} is not allowed: --workdir={workdir} holds a run with "
                f"{saved.get(name)!r}{reason}. Use that value to continue it, or another --workdir to start a new run."
            )


def check_images(workdir: Path, found: FoundCheckpoint | None, images: str) -> None:
    """Refuses to continue a run on other images.

    Args:
      workdir: The run's directory.
      found: Its newest checkpoint; a run without one fits any images.
      images: The fingerprint of the training images now.

    Raises:
      UserError: The fingerprint differs from the one in the checkpoint.
    """
    if found is not None and found.images != images:
        raise UserError(
            f"The training images are not those that the run in --workdir={workdir} was trained on "
            f"({images} now, {found.images} then). Restore them, or use another --workdir to start a new run."
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
