"""Saving and restoring a run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from orbax.checkpoint.experimental import v1 as ocp

from vqjax.errors import UserError
from vqjax.models.build import build_model
from vqjax.models.tokenizer import Tokenizer
from vqjax.training.config import default_config
from vqjax.training.state import TrainState

WHERE_CODES_ARE_SEARCHED = {"codebook_shards": 1, "search": "chunks"}
"""Fields of the config's group ``quantizer`` that depend on the devices, with values that any device can do."""

CHANGEABLE = frozenset(
    {"num_steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "steps_per_dispatch"}
    | {"tensorboard", "wandb"}
    | {f"quantizer.{name}" for name in WHERE_CODES_ARE_SEARCHED}
)
"""Config fields that may differ between a run and its continuation: none changes a step by more than rounding."""


class Checkpoints:
    """The checkpoints of one run, under ``WORKDIR/checkpoints``; writing is atomic.

    Args:
      workdir: The run's directory.
      config: The run's config, stored with every checkpoint.
      images: The fingerprint of the training images, stored likewise.
    """

    def __init__(self, workdir: Path, config: ConfigDict, images: str):
        self._metadata = {
            "config": config.to_dict(),
            "images": images,
            "versions": {name: version(name) for name in ("vqjax", "jax", "flax", "optax", "orbax-checkpoint")},
        }
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / "checkpoints").resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep_checkpoints),
            # A save that was killed leaves a temporary directory behind; it never counts as a checkpoint.
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint of the state's step, unless there is one already.

        Raises:
          UserError: It cannot be written; the checkpoints before are intact.
        """
        step = int(state.step)
        latest = self._checkpointer.latest
        if latest is not None and latest.step >= step:
            return
        try:
            self._checkpointer.save(step, state, force=True, custom_metadata=self._metadata)
        except Exception as error:
            # Orbax raises many types when a disk is full or a directory goes away; none is a defect of the run.
            raise UserError(
                f"The checkpoint of step {step} cannot be written to {self._checkpointer.directory} "
                f"({_first_line(error)}). Make room or mend the place, and run the same command again; the "
                "checkpoints before are intact."
            ) from error

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Returns the newest checkpoint, or None before the first one.

        Args:
          like: A state of the same structure, shapes and sharding.

        Raises:
          UserError: The checkpoint cannot be read.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return None
        with _readable(self._checkpointer.directory, latest.step):
            return self._checkpointer.load(latest.step, _abstract(like))

    def close(self) -> None:
        """Ends all writing."""
        # A save that failed has said so already; orbax would raise the same error again.
        with suppress(Exception):
            self._checkpointer.close()


def check_resumable(workdir: Path, config: ConfigDict) -> None:
    """Refuses to continue a run with another config.

    Args:
      workdir: The run's directory; one without checkpoints fits any config.
      config: What was asked for now.

    Raises:
      UserError: The first field that differs and matters, with both values; or the run is already longer.
    """
    found = _read_metadata(workdir, None)
    if found is None:
        return
    step, metadata = found
    if config.num_steps < step:
        raise UserError(
            f"config.num_steps={config.num_steps} is not allowed: the run in --workdir={workdir} has taken {step} "
            f"steps. Use {step} or more, or another --workdir to start a new run."
        )
    # As it was written: JSON makes lists of tuples.
    saved, given = (_flat(json.loads(json.dumps(fields))) for fields in (metadata["config"], config.to_dict()))
    # A field that was added since then had no effect before.
    saved = _flat(json.loads(json.dumps(default_config().to_dict()))) | saved
    fixed = {"num_steps"} if config.optimizer.schedule == "cosine" else set()
    for name in sorted(saved.keys() | given.keys()):
        if (name in fixed or name not in CHANGEABLE) and saved.get(name) != given.get(name):
            raise UserError(
                f"config.{name}={given.get(name)!r} is not allowed: --workdir={workdir} holds a run with "
                f"{saved.get(name)!r}. Use that value to continue it, or another --workdir to start a new run."
            )


def check_same_images(workdir: Path, images: str) -> None:
    """Refuses to continue a run on other images.

    Args:
      workdir: The run's directory; one without checkpoints fits any images.
      images: The fingerprint of the training images now.

    Raises:
      UserError: The fingerprint differs from the one in the newest checkpoint.
    """
    found = _read_metadata(workdir, None)
    if found is not None and found[1]["images"] != images:
        raise UserError(
            f"The training images are not those that the run in --workdir={workdir} was trained on "
            f"({images} now, {found[1]['images']} then). Restore them, or use another --workdir to start a new run."
        )


def load_tokenizer(workdir: str | Path, step: int | None = None) -> Tokenizer:
    """Loads the model of a run; its config is in the checkpoint.

    Args:
      workdir: The run's directory.
      step: Which checkpoint; the newest by default.

    Returns:
      The model with its variables.

    Raises:
      UserError: There is no such checkpoint, or it cannot be read.
    """
    workdir = Path(workdir)
    found = _read_metadata(workdir, step)
    if found is None:
        raise UserError(
            f"--workdir={workdir} holds no checkpoint: pass the directory of a run "
            f"(train one with python train.py --workdir={workdir})."
        )
    step, metadata = found
    config = ConfigDict(metadata["config"])
    model = build_model(config.model, config.quantizer.to_dict() | WHERE_CODES_ARE_SEARCHED)
    with _checkpointer(workdir) as checkpointer, _readable(checkpointer.directory, step):
        saved = checkpointer.load(step, _abstract_model(checkpointer.metadata(step).metadata))
    variables = {"params": saved["params"], **saved["collections"]}
    return Tokenizer(model, variables, config=metadata["config"], step=step)


def _read_metadata(workdir: Path, step: int | None) -> tuple[int, dict[str, Any]] | None:
    if not (workdir / "checkpoints").is_dir():
        return None
    with _checkpointer(workdir) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        if not steps:
            return None
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise UserError(f"--step={step} is no checkpoint of --workdir={workdir}: use one of {steps}.")
        with _readable(checkpointer.directory, step):
            metadata = checkpointer.metadata(step).custom_metadata
            if metadata is None or not {"config", "images"} <= metadata.keys():
                raise ValueError("its metadata are damaged")
            return step, metadata


@contextmanager
def _checkpointer(workdir: Path) -> Iterator[ocp.training.Checkpointer]:
    checkpointer = ocp.training.Checkpointer((workdir / "checkpoints").resolve())
    try:
        yield checkpointer
    finally:
        checkpointer.close()


@contextmanager
def _readable(directory: Any, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Orbax raises many types for damaged files; the reader needs the place and the first reason.
        raise UserError(
            f"The checkpoint {directory}/{step} cannot be read ({_first_line(error)}). Move that directory away "
            "to continue from the one before it."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _abstract_model(saved: dict[str, Any]) -> dict[str, Any]:
    """Asks for the model's variables, on one device wherever they were saved from, and for nothing else."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def wanted(saved: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=device)

    def unwanted(saved: Any) -> Any:
        return ocp.PLACEHOLDER

    return {
        name: jax.tree.map(wanted if name in ("params", "collections") else unwanted, tree)
        for name, tree in saved.items()
    }


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
