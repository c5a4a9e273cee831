"""The training loop."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import Checkpoints
from vqjax.checkpointing.discovery import find_checkpoint
from vqjax.data import Feed, ImageDataset, batch_indices, fingerprint, load_splits, make_feed
from vqjax.data.batches import PARAMETERS_AXIS, check_batch_size
from vqjax.data.sources import with_absolute_path
from vqjax.data.tokens import TokenDataset
from vqjax.evaluation import EvaluationResult
from vqjax.reporting import MetricWriter, Progress, save_png
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.processes import assert_same_on_all_processes, is_distributed, is_main_process
from vqjax.runtime.remote import local_copy, shown
from vqjax.runtime.signals import Interrupted, StopRequest
from vqjax.runtime.workdir import exclusive, usable_workdir
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics, Task
from vqjax.training.build import build_task, check_fits, example_batch, initial_state, learning_rates
from vqjax.training.config import task_with_absolute_paths, validate
from vqjax.training.console import describe_devices, log, progress_line
from vqjax.training.devices import make_mesh, platform_of, without_mesh
from vqjax.training.dispatch import make_dispatch, make_step, placed_shapes
from vqjax.training.evaluate import evaluate_state, report
from vqjax.training.nonfinite import Losses, NonfiniteGuard
from vqjax.training.optimizer import updates_taken
from vqjax.training.resume import check_config, check_images

CONFIG_FILE = "config.json"


@without_mesh()
def train(config: ConfigDict, workdir: str | Path, *, devices: list[jax.Device] | None = None) -> EvaluationResult:
    """Train the task of a config, or resume a run, and evaluate it.

    Args:
      config: A config; see :func:`vqjax.training.config.base_config`.
      workdir: Directory of checkpoints, metrics and pictures, or its URL, such as ``gs://bucket/run``. A run that is
        found there with the same config is continued; it ends bit for bit as if it had never been interrupted (on the
        same kind of machine).
      devices: Devices to divide each batch over; all by default.

    Returns:
      The evaluation of the final state on the held-out split, also written to ``workdir/eval``.

    Raises:
      UserError: The config, the data or the directory cannot be used, or its storage not be reached.
      Interrupted: The process got SIGTERM, SIGINT or SIGHUP; a checkpoint has been saved.
      FloatingPointError: The loss or its gradient is not finite; the last checkpoint is intact.
    """
    with local_copy(workdir, "--workdir") as (directory, upload):
        return _train(config, directory, devices, upload)


def _train(
    config: ConfigDict, workdir: str | Path, devices: list[jax.Device] | None, upload: Callable[[], None]
) -> EvaluationResult:
    """Train in a local directory, and call ``upload`` after everything that a run could continue from."""
    # The config is taken apart here, once; what follows has the parts.
    workdir, config = usable_workdir(workdir), validate(config)
    text = config.to_json_best_effort(sort_keys=True)
    assert_same_on_all_processes("config", text, "Start all of them with the same arguments.")
    # Whoever continues or evaluates the run may do so from another working directory.
    config.data, config.task = with_absolute_path(config.data), task_with_absolute_paths(config.task)
    check_config(workdir, find_checkpoint(workdir), config)
    name = f"{config.data.source} {config.data.get('name') or 'images'}"
    log(f"vqjax: {name} on {describe_devices(devices)}, writing to {shown(workdir)}")
    splits = load_splits(config.data)
    task = build_task(config, splits.train)
    mesh = make_mesh(devices, {**task.mesh_axes, PARAMETERS_AXIS: config.parameter_shards})
    check_batch_size(config.batch_size, len(splits.train), mesh, config.gradient_accumulation or 1)
    # What the networks refuse is found before all images are read.
    shapes = check_fits(task, jax.random.key(config.seed), example_batch(splits.train))
    schedule = _Schedule(
        num_steps=config.num_steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        steps_per_dispatch=config.steps_per_dispatch or (1 if platform_of(mesh) == "cpu" else 20),
        patience=config.patience,
    )
    order = {"seed": config.seed, "batch_size": config.batch_size}
    feed = make_feed(
        splits.train,
        **order,
        steps_per_dispatch=schedule.steps_per_dispatch,
        resident_limit=config.data.resident_limit_mb * 2**20,
        mesh=mesh,
    )
    # Only now, so that a mistake found above leaves no directory behind.
    with exclusive(workdir):
        images, eval_images = fingerprint(splits.train), fingerprint(splits.eval)
        for name, found in (("training", images), ("held-out", eval_images)):
            assert_same_on_all_processes(f"set of {name} images", found, "Pass the same images to all of them.")
        checkpoints = Checkpoints(
            workdir,
            config.to_dict(),
            images,
            eval_images=eval_images,
            class_names=splits.train.class_names,
            tokens=splits.train.info.facts if isinstance(splits.train, TokenDataset) else None,
            keep=config.keep_checkpoints,
            keep_every=config.keep_every,
            keep_best=config.keep_best,
            keep_best_mode=config.keep_best_mode,
        )
        # Another run may have ended since the first look.
        check_config(workdir, checkpoints.found, config)
        check_images(workdir, checkpoints.found, images, eval_images)
        if is_main_process():
            write_config(workdir, config)
            # Storage that cannot be written to is found before the first step.
            upload()
        found = 0 if checkpoints.found is None else checkpoints.found.step
        is_over = schedule.is_over(found, checkpoints.not_better)
        log("compiling the first step" if checkpoints.found is None else f"resuming at step {found}")
        with ThreadPoolExecutor(max_workers=1) as background:
            step = make_step(task, config.seed)
            shapes = placed_shapes(task, step, shapes, feed.batch_spec, mesh)
            sharding = jax.tree.map(lambda shape: shape.sharding, shapes)
            dispatch = make_dispatch(
                step,
                feed.select,
                steps_per_dispatch=schedule.steps_per_dispatch,
                sharding=sharding.replace(frozen={}),
                skip_nonfinite=config.nonfinite == "skip",
            )
            if not is_over:
                # XLA compiles, or reads what it has compiled before, while the state is made.
                arguments = shapes.replace(frozen={}), shapes.frozen, feed.staged_spec, np.int32(0)
                compiling = background.submit(dispatch.lower(*arguments).compile)
                if is_distributed():
                    # All processes compile in the same order.
                    compiling.result()
            state = _start_or_restore(task, sharding, splits.train, checkpoints, **order)
            dispatch = dispatch if is_over else compiling.result()
        trainer = _Trainer(
            task=task,
            state=state,
            schedule=schedule,
            feed=feed,
            dispatch=dispatch,
            evaluate=functools.partial(
                evaluate_state, task, dataset=splits.eval, batch_size=config.batch_size, mesh=mesh
            ),
            nonfinite=NonfiniteGuard(
                skip=config.nonfinite == "skip",
                images_of=lambda step: batch_indices(step=step, num_images=feed.num_images, **order),
                workdir=workdir,
            ),
            learning_rates=learning_rates(config.optimizer, config.num_steps, task.network),
            checkpoints=checkpoints,
            writer=MetricWriter(
                workdir,
                resume_step=None if checkpoints.found is None else int(state.step),
                tensorboard=config.tensorboard,
                wandb=config.wandb,
                config=config.to_dict(),
            ),
            workdir=workdir,
            upload=upload,
        )
        try:
            with (
                StopRequest() as stop_request,
                progress_line(
                    config.num_steps, trainer.step, config.batch_size, "video" in feed.batch_spec
                ) as progress,
            ):
                trainer.run(stop_request, progress)
            # A run that was complete when it started has nothing to log, but still shows its result.
            result = trainer.final_result or trainer.evaluate(trainer.full_state)
            report(task, result, config, splits.eval, split="eval", step=trainer.step, directory=workdir / "eval")
            if is_main_process():
                print(f"checkpoint: {shown(checkpoints.newest)}", flush=True)
            if trainer.step < config.num_steps and (best := checkpoints.best) is not None:
                log(
                    f"no checkpoint was better in {config.keep_best} for config.patience={config.patience} in a row, "
                    f"so the run ended at step {trainer.step}; vqjax eval --best takes that of step {best[1]}"
                )
            if (advice := task.advice(result.metrics)) is not None:
                log(advice)
            return result
        finally:
            trainer.close()


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Write the config of a run into its directory, for people to read."""
    with atomic_file(workdir / CONFIG_FILE) as file:
        file.write((strict_json(config.to_dict(), indent=2) + "\n").encode())


def _start_or_restore(
    task: Task, sharding: TrainState, dataset: ImageDataset, checkpoints: Checkpoints, *, seed: int, batch_size: int
) -> TrainState:
    """The state that the run begins with, on the devices of the mesh."""
    if checkpoints.found is None:
        state = initial_state(task, dataset, seed=seed, batch_size=batch_size)
    else:
        # What the data decide is in the checkpoint.
        state = task.init(jax.random.key(seed), example_batch(dataset))
    log_sums = {name: np.zeros((), np.float32) for name in sharding.log_sums}
    state = jax.device_put(state.replace(log_sums=log_sums), sharding)
    restored = checkpoints.restore_latest(like=state.saved())
    return state if restored is None else state.replace(**restored)


class _Schedule(NamedTuple):
    """Steps at which a run logs, evaluates, saves and ends."""

    num_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    steps_per_dispatch: int
    patience: int | None

    def steps_to_next_event(self, step: int) -> int:
        """Steps from ``step`` that one dispatch may take."""
        # A full dispatch ends a period like the others, so that a resumed run compiles and takes the same ones.
        periods = (self.log_every, self.eval_every, self.checkpoint_every, self.steps_per_dispatch)
        ends = [step - step % period + period for period in periods]
        return min(*ends, self.num_steps) - step

    def is_due(self, period: int, step: int) -> bool:
        """Whether ``step`` ends a period, or the run."""
        return step % period == 0 or step == self.num_steps

    def is_over(self, step: int, not_better: int) -> bool:
        """Whether a run ends whose last ``not_better`` checkpoints were not better than those before them."""
        return step >= self.num_steps or (self.patience is not None and not_better >= self.patience)


class _LogLine(NamedTuple):
    """Measurements up to a step, still on the device."""

    step: int
    losses: Losses
    sums: Metrics
    updates: dict[str, Int[Array, ""]]  # taken by the optimizers


class _Trainer:
    """The state of a run, and the parts that its steps pass through."""

    def __init__(
        self,
        *,
        task: Task,
        state: TrainState,
        schedule: _Schedule,
        feed: Feed,
        dispatch: Callable[..., tuple[TrainState, Any]],
        evaluate: Callable[[TrainState], EvaluationResult],
        nonfinite: NonfiniteGuard,
        learning_rates: dict[str, optax.Schedule],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        workdir: Path,
        upload: Callable[[], None],
    ) -> None:
        self.task, self.schedule, self.feed, self.dispatch, self.evaluate = task, schedule, feed, dispatch, evaluate
        self.nonfinite, self.checkpoints, self.writer, self.workdir = nonfinite, checkpoints, writer, workdir
        self.learning_rates, self.upload = learning_rates, upload
        # The compiled program takes the frozen networks apart from the state, whose memory it reuses.
        self.state, self.frozen = state.replace(frozen={}), state.frozen
        self.step = int(state.step)
        self.losses: list[tuple[int, Any]] = []
        self.unwritten: _LogLine | None = None
        self.final_result: EvaluationResult | None = None
        self.is_over = schedule.is_over(self.step, checkpoints.not_better)

    @property
    def full_state(self) -> TrainState:
        """The state with its frozen networks."""
        return self.state.replace(frozen=self.frozen)

    def run(self, stop_request: StopRequest, progress: Progress) -> None:
        """Take the remaining steps."""
        losses, dispatches = None, 0
        while not self.is_over:
            count = self.schedule.steps_to_next_event(self.step)
            staged = self.feed.stage(self.step, count)
            # Waiting for the previous dispatch keeps the device busy and the progress line honest.
            jax.block_until_ready(losses)
            self.state, losses = self.dispatch(self.state, self.frozen, staged, np.int32(count))
            self.losses.append((self.step, losses))
            self.step += count
            # Measurements from before this dispatch are fetched while the device is busy with it.
            self._write_log_line(progress)
            self._handle_events(progress)
            progress.update(self.step)
            if stop_request.reached(dispatches):
                self._flush(progress)
                self.checkpoints.save(self.step, self.state.saved())
                raise Interrupted(
                    f"stopped at step {self.step}; the same command continues from there.",
                    stop_request.signal_number,
                )
            dispatches += 1

    def close(self) -> None:
        """End everything that runs in the background."""
        self.feed.close()
        self.writer.close()
        self.checkpoints.close()

    def _handle_events(self, progress: Progress) -> None:
        schedule, step = self.schedule, self.step
        evaluates, saves = (schedule.is_due(n, step) for n in (schedule.eval_every, schedule.checkpoint_every))
        if schedule.is_due(schedule.log_every, step):
            # Copies, as the state goes into the next dispatch.
            counts = {network: updates_taken(self.state.opt_state.get(network)) for network in self.learning_rates}
            updates = {network: count for network, count in counts.items() if count is not None}
            self.unwritten = _LogLine(step, self.losses, self.state.log_sums, updates)
            self.losses = []
            zeros = jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding), self.state.log_sums)
            self.state = self.state.replace(log_sums=zeros)
        if evaluates or saves:
            self._flush(progress)
        result = metrics = None
        if evaluates:
            result = self._evaluate_and_log()
            metrics = {name: float(x) for name, x in result.metrics.items() if x is not None and isfinite(x)}
            progress.say(f"step {step}: {self.task.headline(result.metrics)}")
            self.checkpoints.check_measured(result.metrics)
        # Last, so that everything logged up to a checkpoint's step is on the disk before the checkpoint.
        if saves:
            self.checkpoints.save(step, self.state.saved(), metrics)
            self.is_over = schedule.is_over(step, self.checkpoints.not_better)
            if self.is_over:
                self.final_result = result
        if evaluates or saves:
            self.upload()

    def _flush(self, progress: Progress) -> None:
        """Write what is measured, and make sure that all steps so far were finite."""
        self._write_log_line(progress)
        self.nonfinite.check(self.losses, self.checkpoints.newest, progress.say)
        self.losses = []

    def _write_log_line(self, progress: Progress) -> None:
        if self.unwritten is None:
            return
        step, losses, sums, updates = self.unwritten
        self.unwritten = None
        self.nonfinite.check(losses, self.checkpoints.newest, progress.say)
        sums = {name: float(value) for name, value in jax.device_get(sums).items()}
        steps, skipped = sums.pop("steps"), sums.pop("skipped")
        means = {name: value / steps for name, value in sums.items()} if steps else dict.fromkeys(sums)
        rates = self._learning_rates(jax.device_get(updates))
        self.writer.scalars(step, "train", means | rates | ({"skipped": skipped} if self.nonfinite.skip else {}))
        if steps:
            progress.metrics(means)
        self.nonfinite.count(step, int(steps), int(skipped), self.checkpoints.newest)

    def _learning_rates(self, updates: dict[str, Int[np.ndarray, ""]]) -> dict[str, float]:
        """Learning rate of the last update of each network."""
        return {
            "learning_rate" if len(self.learning_rates) == 1 else f"{network}_learning_rate": float(
                self.learning_rates[network](max(int(count) - 1, 0))
            )
            for network, count in updates.items()
        }

    def _evaluate_and_log(self) -> EvaluationResult:
        result = self.evaluate(self.full_state)
        self.writer.scalars(self.step, "eval", result.metrics)
        for name, picture in self.task.pictures(result.collected).items():
            self.writer.image(self.step, name, picture)
            if is_main_process():
                save_png(self.workdir / f"{name}.png", picture)
        return result
