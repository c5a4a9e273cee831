"""The training loop."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import Checkpoints
from vqjax.checkpointing.discovery import find_checkpoint
from vqjax.data import Feed, ImageDataset, Splits, fingerprint, load_splits, make_feed
from vqjax.data.batches import check_batch_size
from vqjax.data.statistics import pixel_variance
from vqjax.evaluation import EvaluationResult, terminal_table, write_report
from vqjax.evaluation.evaluate import evaluate_model, evaluation_context
from vqjax.models import VQVAE
from vqjax.models.registry import build_model
from vqjax.reporting import MetricWriter, Progress, comparison_sheet, save_png
from vqjax.runtime.processes import assert_same_on_all_processes, is_main_process
from vqjax.runtime.signals import Interrupted, StopRequest
from vqjax.runtime.workdir import exclusive, usable_workdir
from vqjax.tasks.alternating import build_codebook_optimizer
from vqjax.tasks.codebook_init import start_from_kmeans
from vqjax.tasks.state import TrainState, check_model, create_state
from vqjax.tasks.vqvae import Metrics, StepOptions, train_step
from vqjax.training import nonfinite
from vqjax.training.console import describe_devices, progress_line, say
from vqjax.training.devices import make_mesh, state_sharding
from vqjax.training.dispatch import empty_window, make_dispatch
from vqjax.training.optimizer import build_optimizer
from vqjax.training.resume import check_config, check_images
from vqjax.training.validation import validate


def train(config: ConfigDict, workdir: str | Path, *, devices: list[jax.Device] | None = None) -> EvaluationResult:
    """Trains a tokenizer, or continues a run where it stopped, and evaluates it.

    Args:
      config: See :func:`vqjax.training.config.default_config`.
      workdir: Where checkpoints, metrics and pictures go. A run found there with the same config is continued; it
        ends bit for bit as if it had never been interrupted (on the same kind of machine).
      devices: Devices to divide each batch over; all by default.

    Returns:
      The evaluation of the final state on the held-out split, also written to ``workdir/eval``.

    Raises:
      UserError: Something that was asked for cannot be done.
      Interrupted: The process got SIGTERM or SIGINT; a checkpoint has been saved.
      FloatingPointError: The loss or its gradient is no finite number; the checkpoint before is intact.
    """
    workdir = usable_workdir(workdir)
    validate(config)
    mesh = make_mesh(devices, config.quantizer.codebook_shards, config.quantizer.search)
    model = build_model(config.model, config.quantizer)
    check_model(model, config)
    assert_same_on_all_processes(
        "config", config.to_json_best_effort(sort_keys=True), "Start all of them with the same arguments."
    )
    check_config(workdir, find_checkpoint(workdir), config)
    source = f"{config.data.source} {config.data.name or 'images'}"
    say(f"vqjax: {source} on {describe_devices(devices)}, writing to {workdir}")
    splits = load_splits(config.data)
    check_batch_size(config.batch_size, len(splits.train), mesh, config.gradient_accumulation)
    feed = make_feed(
        splits.train,
        seed=config.seed,
        batch_size=config.batch_size,
        steps_per_dispatch=_steps_per_dispatch(config),
        resident_limit=config.data.resident_limit_mb * 2**20,
        mesh=mesh,
    )
    # Only now, so that a mistake found above leaves no directory behind.
    with exclusive(workdir):
        images = fingerprint(splits.train)
        assert_same_on_all_processes("set of training images", images, "Give all of them the same images.")
        checkpoints = Checkpoints(workdir, config, images)
        # Another run may have ended since the first look.
        check_config(workdir, checkpoints.found, config)
        check_images(workdir, checkpoints.found, images)
        run = _Run(config, workdir, model, splits, feed, mesh, checkpoints)
        try:
            with StopRequest() as stop_request:
                run.to_the_end(stop_request)
            return run.final_report()
        finally:
            run.close()


class _Window(NamedTuple):
    """The metrics up to a step, still on the device."""

    step: int
    nonfinite_steps: Callable[[], list[int]]
    sums: Metrics


class _Run:
    """What the steps of one run share: state, compiled step, feed, writers."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        model: VQVAE,
        splits: Splits,
        feed: Feed,
        mesh: Mesh,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.workdir, self.model, self.splits, self.feed = config, workdir, model, splits, feed
        optimizer = build_optimizer(config.optimizer, config.num_steps)
        options = _step_options(config, splits.train)
        codebook = build_codebook_optimizer(config.alternating)
        step = functools.partial(
            train_step,
            model=model.clone(microbatches=config.gradient_accumulation),
            optimizer=optimizer,
            options=options,
            codebook_optimizer=codebook,
        )
        skip_nonfinite = config.nonfinite == "skip"
        state = create_state(
            model, optimizer, feed.batch_spec["image"].shape[1:], config.seed, codebook and codebook.optimizer
        )
        if checkpoints.found is None and config.quantizer.kmeans_init:
            say("starting the codebook from k-means")
            state = start_from_kmeans(model, state, splits.train, config)
        state = state.replace(window=empty_window(state, feed, step, skip_nonfinite))
        sharding = state_sharding(state, mesh, model.quantizer.num_codes)
        state = jax.device_put(state, sharding)
        self.mesh, self.checkpoints = mesh, checkpoints
        restored = checkpoints.restore_latest(like=state)
        self.state: TrainState = state if restored is None else restored
        self.step = int(self.state.step)
        say(f"resuming at step {self.step}" if restored is not None else "compiling the first step")
        self.dispatch = make_dispatch(step, feed.select, _steps_per_dispatch(config), sharding, skip_nonfinite)
        self.writer = MetricWriter(
            workdir,
            resume_step=None if restored is None else self.step,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            config=config.to_dict(),
        )
        self.final_result: EvaluationResult | None = None
        self.unwritten: _Window | None = None
        self.recent_losses = nonfinite.RecentLosses()
        self.skipped_in_a_row = 0

    def to_the_end(self, stop_request: StopRequest) -> None:
        """Takes the remaining steps."""
        config = self.config
        with progress_line(config, self.step) as progress:
            losses = None
            for dispatch in itertools.count():
                if self.step == config.num_steps:
                    break
                count = self._steps_to_next_event()
                staged = self.feed.stage(self.step, count)
                # Waiting for the dispatch before this one keeps the device busy and the progress line honest.
                _wait_for(losses)
                self.state, losses = self.dispatch(self.state, staged, np.int32(count))
                self.recent_losses.add(self.step, count, losses)
                self.step += count
                # What was measured before this dispatch is fetched while the device is busy with it.
                self._write_window(progress)
                self._handle_events(progress)
                progress.update(self.step)
                if stop_request.reached(dispatch):
                    self._look_at_all(progress)
                    self.checkpoints.save(self.state)
                    raise Interrupted(
                        f"stopped at step {self.step}; the same command continues from there.",
                        stop_request.signal_number,
                    )

    def final_report(self) -> EvaluationResult:
        """Evaluates the final state, writes the report and prints its table."""
        # A run that was complete when it started has nothing to log, but still tells its result.
        result = self.final_result or self._evaluate()
        num_codes = self.model.quantizer.num_codes
        context = evaluation_context(
            self.config, num_codes, self.splits.eval, self.step, split=self.config.data.eval_split
        )
        if not is_main_process():
            return result
        write_report(self.workdir / "eval", result, context=context)
        print(terminal_table(result, context))
        print(f"checkpoint: {self.workdir}/checkpoints/{self.step}")
        print(f"report:     {self.workdir}/eval/report.md")
        print(f"picture:    {self.workdir}/eval/reconstructions.png", flush=True)
        return result

    def close(self) -> None:
        """Ends everything that runs in the background."""
        self.feed.close()
        self.writer.close()
        self.checkpoints.close()

    def _steps_to_next_event(self) -> int:
        config = self.config
        periods = (config.log_every, config.eval_every, config.checkpoint_every, _steps_per_dispatch(config))
        ends = [self.step - self.step % period + period for period in periods]
        return min(*ends, config.num_steps) - self.step

    def _handle_events(self, progress: Progress) -> None:
        config, step = self.config, self.step
        last = step == config.num_steps
        evaluates, saves = (step % period == 0 or last for period in (config.eval_every, config.checkpoint_every))
        if step % config.log_every == 0 or last:
            self.unwritten = _Window(step, self.recent_losses.take(), self.state.window)
            empty = jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding), self.state.window)
            self.state = self.state.replace(window=empty)
        if evaluates or saves:
            self._look_at_all(progress)
        if evaluates:
            progress.say(f"step {step}: {_headline(self._evaluate_and_log())}")
        # Last, so that everything logged up to a checkpoint's step is on the disk before the checkpoint.
        if saves:
            self.checkpoints.save(self.state)

    def _write_window(self, progress: Progress) -> None:
        if self.unwritten is None:
            return
        step, nonfinite_steps, window = self.unwritten
        self._look_at(nonfinite_steps(), progress)
        sums = {name: float(value) for name, value in jax.device_get(window).items()}
        steps, skipped = sums.pop("steps"), sums.pop("skipped", None)
        metrics = {name: value / steps for name, value in sums.items()} if steps else dict.fromkeys(sums)
        self.writer.scalars(step, "train", metrics if skipped is None else metrics | {"skipped": skipped})
        if steps:
            progress.metrics(metrics)
        self.unwritten = None
        self.skipped_in_a_row = 0 if steps else self.skipped_in_a_row + int(skipped)
        if self.skipped_in_a_row >= nonfinite.MOST_IN_A_ROW:
            raise nonfinite.nothing_but_skipped(self.config, step, self.skipped_in_a_row, self.checkpoints.newest)

    def _look_at_all(self, progress: Progress) -> None:
        self._write_window(progress)
        self._look_at(self.recent_losses.take()(), progress)

    def _look_at(self, nonfinite_steps: list[int], progress: Progress) -> None:
        config, num_images = self.config, self.feed.num_images
        if nonfinite_steps and config.nonfinite == "stop":
            raise nonfinite.nonfinite_error(
                self.workdir, config, nonfinite_steps[0], num_images, self.checkpoints.newest
            )
        for step in nonfinite_steps:
            images = nonfinite.first_images(config, step, num_images)
            progress.say(f"step {step + 1} skipped: its loss or gradient is not finite (images number {images})")

    def _evaluate(self) -> EvaluationResult:
        return evaluate_model(
            self.model,
            self.state.variables,
            self.splits.eval,
            batch_size=self.config.batch_size,
            mesh=self.mesh,
        )

    def _evaluate_and_log(self) -> EvaluationResult:
        result = self._evaluate()
        sheet = comparison_sheet(result.originals, result.reconstructions)
        self.writer.scalars(self.step, "eval", result.metrics)
        self.writer.image(self.step, "reconstructions", sheet)
        if is_main_process():
            save_png(self.workdir / "reconstructions.png", sheet)
        if self.step == self.config.num_steps:
            self.final_result = result
        return result


def _step_options(config: ConfigDict, dataset: ImageDataset) -> StepOptions:
    scale = 1 / pixel_variance(dataset) if config.loss.divide_by_variance else 1.0
    return StepOptions(
        seed=config.seed,
        flip=config.data.flip,
        crop_padding=config.data.crop_padding,
        reconstruction_scale=scale,
        encoder_gradient=config.loss.encoder_gradient,
    )


def _steps_per_dispatch(config: ConfigDict) -> int:
    return config.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 20)


def _wait_for(value: Any) -> None:
    if value is not None:
        jax.block_until_ready(value)


def _headline(result: EvaluationResult) -> str:
    metrics = result.metrics
    return (
        f"held-out PSNR {metrics['psnr']:.2f} dB ({metrics['psnr_gain']:+.2f} over the mean color), "
        f"perplexity {metrics['perplexity_batch']:.1f}, codes in use {100 * metrics['usage_split']:.0f} %"
    )
