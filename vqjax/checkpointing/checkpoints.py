"""Checkpoints of a run: saving and restoring its state, and loading its networks."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import PyTree
from orbax.checkpoint.experimental import v1 as ocp

from vqjax.checkpointing.discovery import (
    CHECKPOINTS,
    FORMAT,
    CheckpointInfo,
    best_of,
    best_step,
    directory_of,
    find_checkpoint,
    score,
    set_aside,
)
from vqjax.checkpointing.integrity import write_checksums
from vqjax.errors import UserError, one_line
from vqjax.models.registry import build_model
from vqjax.models.tokenizer import NETWORK, Tokenizer
from vqjax.runtime.paths import local_path
from vqjax.runtime.processes import (
    assert_same_on_all_processes,
    is_lost_process,
    is_main_process,
    main_process_first,
)
from vqjax.runtime.remote import local_copy
from vqjax.runtime.workdir import SHARE_THE_WORKDIR

_NAMED_CHANGES = 5


class Checkpoints:
    """Checkpoints of one run under ``WORKDIR/checkpoints``; writes are atomic, and damaged ones are moved aside.

    Args:
      workdir: Directory of the run, which no other run uses.
      config: Config of the run, stored with every checkpoint.
      images: Fingerprint of the training images, also stored with every checkpoint.
      eval_images: Fingerprint of the held-out images, also stored with every checkpoint; None if there are none.
      class_names: Classes of the training images, also stored; None if they have none.
      tokens: Facts of the tokens, also stored; None for images.
      keep: Number of newest checkpoints to keep.
      keep_every: Also keep the checkpoints at multiples of this number of steps.
      keep_best: Also keep the checkpoint with the best value of this metric.
      keep_best_mode: Whether the best value is the largest or the smallest.

    Attributes:
      found: The newest checkpoint that was intact when this object was created, or None.
      not_better: Number of evaluated checkpoints in a row that were not better than those before them.

    Raises:
      UserError: There are checkpoints, and none of them is intact.
    """

    def __init__(
        self,
        workdir: Path,
        config: Mapping[str, Any],
        images: str,
        *,
        eval_images: str | None = None,
        class_names: Sequence[str] | None = None,
        tokens: Mapping[str, Any] | None = None,
        keep: int,
        keep_every: int | None = None,
        keep_best: str | None = None,
        keep_best_mode: Literal["max", "min"] = "max",
    ):
        self._metadata = {
            "format": FORMAT,
            "config": config,
            "images": images,
            "eval_images": eval_images,
            "class_names": None if class_names is None else list(class_names),
            "tokens": None if tokens is None else dict(tokens),
            "versions": {name: version(name) for name in ("vqjax", "jax", "flax", "optax", "orbax-checkpoint")},
        }
        self.found = find_checkpoint(workdir)
        assert_same_on_all_processes("newest intact checkpoint", self.found and self.found.step, SHARE_THE_WORKDIR)
        with main_process_first("damaged checkpoints are set aside"):
            if self.found is not None and is_main_process():
                set_aside(workdir, self.found)
        # As users have written it; Orbax takes absolute paths alone.
        self._directory = workdir / CHECKPOINTS
        preservation_policies = ocp.training.preservation_policies
        self._keep_best, self._keep_best_mode = keep_best, keep_best_mode
        kept, mode, count = (None, None, 0) if self.found is None else self.found.not_better
        self.not_better = count if (kept, mode) == (keep_best, keep_best_mode) else 0
        policies = [preservation_policies.LatestN(keep)]
        if keep_every is not None:
            policies.append(preservation_policies.EveryNSteps(interval_steps=keep_every))
        if keep_best is not None:
            of_metrics = functools.partial(score, name=keep_best, mode=keep_best_mode)
            policies.append(
                preservation_policies.BestN(get_metric_fn=of_metrics, n=1, keep_checkpoints_without_metrics=False)
            )
        self._checkpointer = ocp.training.Checkpointer(
            self._directory.resolve(),
            preservation_policy=preservation_policies.AnyPreservationPolicy(policies),
            # A save that was killed leaves a temporary directory behind, which never counts as a checkpoint.
            cleanup_tmp_directories=True,
        )

    @property
    def newest(self) -> Path | None:
        """Directory of the newest checkpoint, if there is one."""
        latest = self._checkpointer.latest
        return None if latest is None else self._directory / str(latest.step)

    @property
    def best(self) -> tuple[float, int] | None:
        """Score and step of the checkpoint with the best metric, the latest of equal ones; None without any."""
        if self._keep_best is None:
            return None
        return best_of(self._checkpointer, self._keep_best, self._keep_best_mode)

    def check_measured(self, metrics: Mapping[str, float | int | None]) -> None:
        """Refuse an evaluation that lacks the metric whose best checkpoint is kept, without which none would be better.

        Args:
          metrics: Numbers of the evaluation, some of which may be None.

        Raises:
          UserError: It is None, or not there.
        """
        if self._keep_best is not None and metrics.get(self._keep_best) is None:
            measured = ", ".join(sorted(name for name, value in metrics.items() if value is not None))
            raise UserError(
                f"config.keep_best={self._keep_best} is not measured for these images; use one of {measured}."
            )

    def save(self, step: int, state: Mapping[str, PyTree], metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint, unless one already exists for this step or a later one.

        Args:
          step: Number of steps taken.
          state: State of the run, by field.
          metrics: Numbers of an evaluation of that state, if there was one.

        Raises:
          UserError: The checkpoint could not be written. Earlier checkpoints are unaffected.
        """
        latest = self._checkpointer.latest
        if latest is not None and latest.step >= step:
            return
        if self._keep_best is None:
            # Where they are damaged, Orbax opens no checkpoint at all: written only where somebody asks for them.
            metrics = None
        elif metrics is not None:
            least, _ = self.best or (-math.inf, 0)
            better = score(metrics, self._keep_best, self._keep_best_mode) > least
            self.not_better = 0 if better else self.not_better + 1
        try:
            self._checkpointer.save(
                step,
                dict(state),
                force=True,
                metrics=None if metrics is None else dict(metrics),
                custom_metadata=self._metadata
                | {"not_better": [self._keep_best, self._keep_best_mode, self.not_better]},
            )
            if is_main_process():
                write_checksums(Path(self._checkpointer.directory) / str(step))
        except Exception as error:
            if is_lost_process(error):
                raise
            # Orbax raises many exception types when a disk is full or a directory disappears; none is a bug in the run.
            raise UserError(
                f"The checkpoint of step {step} could not be written to {self._checkpointer.directory} "
                f"({one_line(error)}). Free disk space or restore access to the directory, and run the same command "
                "again; earlier checkpoints are unaffected."
            ) from error

    def restore_latest(self, like: Mapping[str, PyTree]) -> dict[str, PyTree] | None:
        """Return the state in the checkpoint that was found, or None if there was none.

        Args:
          like: State of the same structure, shapes and sharding. The metric names in its ``log_sums`` may differ from
            the saved ones, because a release may add a metric; new ones start at zero.

        Raises:
          UserError: The checkpoint cannot be read, or holds a state with a different structure.
        """
        if self.found is None:
            return None
        directory, step = self._checkpointer.directory, self.found.step
        with _readable(directory, step):
            saved = self._checkpointer.metadata(step).metadata
        _check_structure(saved, like, self.found.versions["vqjax"])
        sums = {name: like["log_sums"].get(name, ocp.PLACEHOLDER) for name in saved["log_sums"]}
        with _readable(directory, step):
            restored = self._checkpointer.load(step, jax.tree.map(_abstract, {**like, "log_sums": sums}))
        sums = {name: restored["log_sums"].get(name, value) for name, value in like["log_sums"].items()}
        return restored | {"log_sums": sums}

    def close(self) -> None:
        """Wait for pending writes and release the checkpointer."""
        # A save that failed has raised an error already; Orbax would raise the same one again.
        with suppress(Exception):
            self._checkpointer.close()


class SavedNetworks(NamedTuple):
    """Networks in a checkpoint, without the states of their optimizers.

    Attributes:
      info: The checkpoint.
      params: Parameters by network.
      variables: Other variables by network and collection.
      ema_params: Averaged parameters by network; None if the run does not average parameters.
    """

    info: CheckpointInfo
    params: dict[str, PyTree]
    variables: dict[str, PyTree]
    ema_params: dict[str, PyTree] | None


def load_networks(workdir: str | Path, step: int | None = None, *, best: bool = False) -> SavedNetworks:
    """Load the networks of a run, wherever they were trained, as arrays that are tied to no device.

    Args:
      workdir: Directory of the run, or its URL.
      step: Step of the checkpoint; by default the newest one that is intact.
      best: Load the checkpoint with the best value of the metric ``config.keep_best`` instead.

    Returns:
      The networks.

    Raises:
      UserError: There is no such checkpoint, or it cannot be read.
    """
    with local_copy(workdir, "--workdir") as (directory, _):
        return _load_networks(local_path(directory, "--workdir"), step, best)


def _load_networks(workdir: Path, step: int | None, best: bool) -> SavedNetworks:
    """Load the networks of a run from a local directory."""
    if best and step is not None:
        raise UserError(f"--step must be left out with --best, got {step}; give one of the two.")
    info = find_checkpoint(workdir, best_step(workdir) if best else step)
    if info is None:
        raise UserError(
            f"{workdir} contains no checkpoint; train a model first with python train.py --workdir={workdir}, or pass "
            "the directory of another run."
        )
    for other, reason in info.passed_over.items():
        logging.warning("checkpoint %d is not intact (%s); loading that of step %d instead", other, reason, info.step)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)

    def left_out(array: Any) -> Any:
        return ocp.PLACEHOLDER

    directory = directory_of(workdir, info.step).resolve()
    with _readable(directory.parent, info.step):
        saved = ocp.metadata(directory).metadata
        wanted = {
            name: jax.tree.map(on_device if name in SavedNetworks._fields else left_out, tree)
            for name, tree in saved.items()
        }
        loaded = ocp.load(directory, wanted)
    # Through NumPy, as Orbax ties arrays to a device, and these are to follow those that they are used with.
    networks = {
        name: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), loaded.get(name)) for name in SavedNetworks._fields[1:]
    }
    return SavedNetworks(info, **networks)


def load_tokenizer(workdir: str | Path, step: int | None = None, *, best: bool = False) -> Tokenizer:
    """Load the tokenizer of a run, whose config is read from the checkpoint.

    Args:
      workdir: Directory of the run, or its URL.
      step: Step of the checkpoint; by default the newest one that is intact.
      best: Load the checkpoint with the best value of the metric ``config.keep_best`` instead.

    Returns:
      The model and its variables, with the averaged parameters if the run keeps them.

    Raises:
      UserError: There is no such checkpoint, it cannot be read, or the run did not train a tokenizer.
    """
    return tokenizer_of(load_networks(workdir, step, best=best), workdir)


def tokenizer_of(networks: SavedNetworks, workdir: str | Path) -> Tokenizer:
    """Return the tokenizer among the networks of a run.

    Args:
      networks: The networks.
      workdir: Directory of the run, for the message of an error.

    Raises:
      UserError: The run did not train a tokenizer.
    """
    config, params = networks.info.config, networks.ema_params or networks.params
    if NETWORK not in params or config.get("quantizer") is None:
        raise UserError(
            f"{workdir} must be the directory of a run that trains a tokenizer, got one whose task is "
            f"{config['task']['name']!r}."
        )
    model = build_model(config["model"], config["quantizer"])
    variables = {"params": params[NETWORK], **networks.variables[NETWORK]}
    return Tokenizer(model, variables, config=config, step=networks.info.step)


@contextmanager
def _readable(directory: Any, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Orbax raises many exception types for damaged files; report the path and the reason on one line.
        raise UserError(
            f"The checkpoint {directory}/{step} cannot be read ({one_line(error)}). Move that directory elsewhere "
            "to resume from the previous checkpoint."
        ) from error


def _abstract(array: Any) -> Any:
    if array is ocp.PLACEHOLDER:
        return array
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _check_structure(saved: Mapping[str, PyTree], like: Mapping[str, PyTree], release: str) -> None:
    """Refuse a checkpoint whose arrays, apart from ``log_sums``, do not match those of this release."""
    before, now = _arrays(saved), _arrays(like)
    changes = [f"{name} is {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    changes += [f"{name} is missing" for name in now if name not in before]
    changes += [f"{name} is unknown" for name in before if name not in now]
    if changes:
        more = f" and {len(changes) - _NAMED_CHANGES} more" if len(changes) > _NAMED_CHANGES else ""
        raise UserError(
            f"The checkpoint was written by vqjax {release}, and this release cannot resume from it: "
            f"{'; '.join(changes[:_NAMED_CHANGES])}{more}. Continue the run with vqjax=={release}, or train in another "
            "--workdir."
        )


def _arrays(state: Mapping[str, PyTree]) -> dict[str, str]:
    """Shape and dtype of every array apart from ``log_sums``, by its path in the state."""
    arrays = jax.tree_util.tree_flatten_with_path({name: tree for name, tree in state.items() if name != "log_sums"})[0]
    return {_name(path): f"{array.dtype}{list(array.shape)}" for path, array in arrays}


def _name(path: tuple[Any, ...]) -> str:
    # Orbax's metadata are dictionaries and lists; the live state has attributes in their place.
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
