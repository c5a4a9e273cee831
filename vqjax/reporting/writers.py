"""Writers of the numbers and pictures of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib
import io
import itertools
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from vqjax.errors import UserError, one_line
from vqjax.reporting.pictures import moving_gif
from vqjax.runtime.files import atomic_file, naming, strict_json
from vqjax.runtime.paths import local_path

METRICS_FILE = "metrics.jsonl"
_TENSORBOARD_FOLDER = "tensorboard"
_TENSORBOARD_FLUSH_SECONDS = 10
_WANDB_ID_FILE = "wandb_run_id.txt"


class MetricWriter:
    """Writer of numbers to ``metrics.jsonl`` and, if asked, to TensorBoard and Weights & Biases.

    A run that resumes repeats the lines that the killed run wrote after its last checkpoint, so these are removed
    first. A run from the beginning renames an existing file to ``metrics.1.jsonl``. Only process 0 writes; other
    processes may call every method.

    Args:
      workdir: Directory of the run.
      resume_step: Step of the checkpoint that the run resumes from; None for a run from the beginning.
      tensorboard: Write TensorBoard events under ``workdir/tensorboard``.
      wandb: Log to Weights & Biases; the run's id is kept in the working directory, so a resumed run continues there.
      config: The configuration, for Weights & Biases.

    Raises:
      UserError: ``wandb`` is set and the package is not installed.

    Example:
      >>> import tempfile
      >>> workdir = Path(tempfile.mkdtemp())
      >>> writer = MetricWriter(workdir, resume_step=None, tensorboard=False, wandb=False, config={})
      >>> writer.scalars(100, "train", {"loss": 0.5, "dead_codes": 3})
      >>> writer.close()
      >>> print((workdir / "metrics.jsonl").read_text(), end="")
      {"step": 100, "train/loss": 0.5, "train/dead_codes": 3}
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resume_step: int | None,
        tensorboard: bool,
        wandb: bool,
        config: Mapping[str, Any],
    ) -> None:
        self._wandb: Any
        self._lines = self._tensorboard = self._wandb = self._wandb_run = None
        if jax.process_index() != 0:
            return
        workdir = local_path(workdir, "workdir")
        workdir.mkdir(parents=True, exist_ok=True)
        if wandb:
            self._wandb = _import_wandb()
            self._wandb_run = _start_wandb_run(self._wandb, workdir, resume_step, config)
        _drop_lines_after(workdir / METRICS_FILE, resume_step)
        self._lines = (workdir / METRICS_FILE).open("a", encoding="utf-8")
        if tensorboard:
            self._tensorboard = SummaryWriter(
                str(workdir / _TENSORBOARD_FOLDER),
                # TensorBoard then hides the steps that are about to be written again.
                purge_step=0 if resume_step is None else resume_step + 1,
                flush_secs=_TENSORBOARD_FLUSH_SECONDS,
            )

    def scalars(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        """Write numbers of one step; they are on disk in metrics.jsonl when this returns.

        Args:
          step: The step they belong to.
          prefix: Split they were measured on, ``train`` or ``eval``; ``loss`` becomes ``train/loss``.
          values: Numbers by name. None, NaN and infinities are ``null`` in metrics.jsonl; None is left out elsewhere.
        """
        if self._lines is None:
            return
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        with naming(self._lines.name):
            self._lines.write(strict_json({"step": step, **named}) + "\n")
            self._lines.flush()
        numbers = {name: float(value) for name, value in named.items() if value is not None}
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)
        if self._wandb_run is not None:
            self._wandb_run.log({"step": step, **numbers})

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "*frames height width 3"]) -> None:
        """Write one picture to TensorBoard and Weights & Biases, if they are enabled.

        Args:
          step: The step it belongs to.
          name: Its name, such as ``reconstructions``.
          image: RGB, 0 to 255; of several frames a moving picture.
        """
        moves = image.ndim == 4
        if self._tensorboard is not None and not moves:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
        if self._tensorboard is not None and moves:
            height, width = image.shape[1:3]
            # add_video would need a package that writes files.
            gif = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=moving_gif(image))
            self._tensorboard.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=gif)]), step)
        if self._wandb_run is not None:
            shown = (
                self._wandb.Video(io.BytesIO(moving_gif(image)), format="gif") if moves else self._wandb.Image(image)
            )
            self._wandb_run.log({"step": step, name: shown})

    def close(self) -> None:
        """Flush and close everything; call it once, at the end of the run."""
        if self._lines is not None:
            # The error of a line that did not fit was raised when it was written; closing would try it again.
            with suppress(OSError):
                self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()


def _drop_lines_after(path: Path, resume_step: int | None) -> None:
    if not path.exists():
        return
    if resume_step is None:
        # These lines may still be useful to somebody.
        os.replace(path, next(p for p in map(path.with_suffix, _numbered()) if not p.exists()))
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_whole_line_up_to(line, resume_step)]
    if kept != lines:
        with atomic_file(path) as file:
            file.writelines(kept)


def _numbered() -> Iterator[str]:
    return (f".{number}.jsonl" for number in itertools.count(1))


def _is_whole_line_up_to(line: bytes, last_step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= last_step
    except (ValueError, KeyError, TypeError):
        return False


def _import_wandb() -> ModuleType:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            'wandb=True needs the package wandb, which is not installed; pip install "vqjax[wandb]", or set '
            "wandb=False."
        ) from error


def _start_wandb_run(wandb: ModuleType, workdir: Path, resume_step: int | None, config: Mapping[str, Any]) -> Any:
    id_file = workdir / _WANDB_ID_FILE
    if resume_step is None or not id_file.exists():
        with atomic_file(id_file) as file:
            file.write(uuid.uuid4().hex.encode())
    try:
        run = wandb.init(
            project="vqjax",
            id=id_file.read_text(),
            name=workdir.resolve().name,
            resume="allow",
            dir=str(workdir),
            config=dict(config),
        )
    except Exception as error:  # of accounts, settings and the network
        raise UserError(
            f"wandb=True could not start a run ({one_line(error)}); log in with `wandb login`, set WANDB_MODE=offline, "
            "or set wandb=False."
        ) from error
    # wandb's own step must not decrease, which it would after a resume.
    run.define_metric("*", step_metric="step")
    return run
