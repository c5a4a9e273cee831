"""Saving and restoring a run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint.experimental import v1 as ocp

from vqjax.checkpointing.discovery import (
    CHECKPOINTS,
    find_checkpoint,
    first_line,
    open_checkpoints,
    set_aside,
)
from vqjax.checkpointing.integrity import write_checksums
from vqjax.errors import UserError
from vqjax.models.registry import build_model
from vqjax.models.tokenizer import Tokenizer
from vqjax.runtime.processes import (
    assert_same_on_all_processes,
    is_lost_process,
    is_main_process,
    main_process_first,
)
from vqjax.runtime.workdir import SHARE_THE_WORKDIR
from vqjax.tasks.state import TrainState

_NAMED = 5


def check_structure(saved: dict[str, Any], wanted: TrainState, release: str) -> None:
    """Refuses a checkpoint of another structure, and says what is different.

    The sums of the log window may differ: what is new in them starts at zero.

    Args:
      saved: Shapes and types of what the checkpoint holds.
      wanted: What this release needs.
      release: That of vqjax that wrote the checkpoint.

    Raises:
      UserError: An array is missing, not known or of another shape or type.
    """
    before, now = _arrays(saved), _arrays(wanted)
    changes = [f"{name} is {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    changes += [f"{name} is missing" for name in now if name not in before]
    changes += [f"{name} is not known" for name in before if name not in now]
    if changes:
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise UserError(
            f"The checkpoint was written by vqjax {release}, and this release cannot continue it: "
            f"{'; '.join(changes[:_NAMED])}{more}. Continue with vqjax=={release}, or train in another --workdir."
        )


def _arrays(tree: Any) -> dict[str, str]:
    """The shape and type of every array but the window's, by its place in the state."""
    arrays = {_name(path): array for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return {
        name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items() if not name.startswith("window.")
    }


def _name(path: tuple[Any, ...]) -> str:
    # Orbax has names and places where the state has attributes.
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


WHERE_CODES_ARE_SEARCHED = {"codebook_shards": 1, "search": "chunks"}
"""Fields of the config's group ``quantizer`` that depend on the devices, with values that any device can do."""


class Checkpoints:
    """The checkpoints of one run, under ``WORKDIR/checkpoints``; writing is atomic, and what is damaged is set aside.

    Args:
      workdir: The run's directory, which no other run uses.
      config: The run's config, stored with every checkpoint.
      images: The fingerprint of the training images, stored likewise.

    Attributes:
      found: The newest checkpoint that was whole at the start, if there was any.

    Raises:
      UserError: There are checkpoints, and none is whole.
    """

    def __init__(self, workdir: Path, config: ConfigDict, images: str):
        self._metadata = {
            "config": config.to_dict(),
            "images": images,
            "versions": {name: version(name) for name in ("vqjax", "jax", "flax", "optax", "orbax-checkpoint")},
        }
        self.found = find_checkpoint(workdir)
        assert_same_on_all_processes("newest whole checkpoint", self.found and self.found.step, SHARE_THE_WORKDIR)
        with main_process_first("damaged checkpoints are set aside"):
            if self.found is not None and is_main_process():
                set_aside(workdir, self.found)
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / CHECKPOINTS).resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep_checkpoints),
            # A save that was killed leaves a temporary directory behind; it never counts as a checkpoint.
            cleanup_tmp_directories=True,
        )

    @property
    def newest(self) -> Path | None:
        """The directory of the newest checkpoint, if there is one."""
        latest = self._checkpointer.latest
        return None if latest is None else Path(self._checkpointer.directory) / str(latest.step)

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
            if is_main_process():
                write_checksums(Path(self._checkpointer.directory) / str(step))
        except Exception as error:
            if is_lost_process(error):
                raise
            # Orbax raises many types when a disk is full or a directory goes away; none is a defect of the run.
            raise UserError(
                f"The checkpoint of step {step} cannot be written to {self._checkpointer.directory} "
                f"({first_line(error)}). Make room or mend the place, and run the same command again; the "
                "checkpoints before are intact."
            ) from error

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Returns the checkpoint that was found, or None before the first one.

        Args:
          like: A state of the same structure, shapes and sharding.

        Raises:
          UserError: The checkpoint cannot be read, or an older release has written it and this one cannot use it.
        """
        if self.found is None:
            return None
        with _readable(self._checkpointer.directory, self.found.step):
            saved = self._checkpointer.metadata(self.found.step).metadata
        check_structure(saved, like, self.found.versions["vqjax"])
        # A release may measure something new; it starts at zero.
        window = {name: like.window.get(name, ocp.PLACEHOLDER) for name in saved["window"]}
        with _readable(self._checkpointer.directory, self.found.step):
            restored = self._checkpointer.load(self.found.step, _abstract(like.replace(window=window)))
        return restored.replace(window={name: restored.window.get(name, value) for name, value in like.window.items()})

    def close(self) -> None:
        """Ends all writing."""
        # A save that failed has said so already; orbax would raise the same error again.
        with suppress(Exception):
            self._checkpointer.close()


def load_tokenizer(workdir: str | Path, step: int | None = None) -> Tokenizer:
    """Loads the model of a run; its config is in the checkpoint.

    Args:
      workdir: The run's directory.
      step: Which checkpoint; the newest that is whole by default.

    Returns:
      The model with its variables.

    Raises:
      UserError: There is no such checkpoint, or it cannot be read.
    """
    workdir = Path(workdir)
    found = find_checkpoint(workdir, step)
    if found is None:
        raise UserError(
            f"--workdir={workdir} holds no checkpoint: pass the directory of a run "
            f"(train one with python train.py --workdir={workdir})."
        )
    for other, reason in found.passed_over.items():
        logging.warning("checkpoint %d is damaged (%s): reading that of step %d", other, reason, found.step)
    config = ConfigDict(found.config)
    quantizer = config.quantizer.to_dict()
    quantizer |= {name: value for name, value in WHERE_CODES_ARE_SEARCHED.items() if name in quantizer}
    model = build_model(config.model, quantizer)
    with open_checkpoints(workdir) as checkpointer, _readable(checkpointer.directory, found.step):
        saved = checkpointer.load(found.step, _abstract_model(checkpointer.metadata(found.step).metadata))
    variables = {"params": saved["params"], **saved["collections"]}
    return Tokenizer(model, variables, config=found.config, step=found.step)


@contextmanager
def _readable(directory: Any, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Orbax raises many types for damaged files; the reader needs the place and the first reason.
        raise UserError(
            f"The checkpoint {directory}/{step} cannot be read ({first_line(error)}). Move that directory away "
            "to continue from the one before it."
        ) from error


def _abstract(state: TrainState) -> TrainState:
    def of_array(array: Any) -> Any:
        if array is ocp.PLACEHOLDER:
            return array
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)

    return jax.tree.map(of_array, state)


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
