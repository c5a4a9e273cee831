"""The drift of the scale of the latents, as a picture: python -m studies.rotation.scale

Trains a narrow model on the bundled photographs with three estimators, in a few minutes on two CPU cores, and draws the
scale of the latents, the relative error and the PSNR over the steps.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.common.command import check_positive
from vqjax.reporting.figures import BLUE, INK, ORANGE, new_figure, save_figure
from vqjax.runtime.paths import local_path
from vqjax.training.cli import run
from vqjax.training.config import load_config
from vqjax.training.loop import train

ROOT = Path(__file__).parents[2]
COLORS = {"straight_through": BLUE, "rotation": INK, "tangential_rotation": ORANGE}
"""The estimators, and their colors."""


def scale_curves(estimator: str, steps: int, directory: Path) -> dict[str, list[float]]:
    """Train, and read the log.

    Args:
      estimator: Name of an estimator.
      steps: Length of the training.
      directory: Of the run.

    Returns:
      Columns ``step``, ``root mean square of the latents``, ``relative error`` and ``PSNR (dB)``.
    """
    flags = {"quantizer.estimator": estimator, "num_steps": steps, "log_every": max(1, steps // 30)}
    flags |= {"model.width": 32, "eval_every": steps, "checkpoint_every": steps, "tensorboard": False}
    config = load_config(str(ROOT / "configs/quickstart.py"), [f"--config.{k}={v}" for k, v in flags.items()])
    train(config, directory)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/relative_error" in line]
    return {
        "step": [line["step"] for line in logged],
        "root mean square of the latents": [line["train/rms_latents"] for line in logged],
        "relative error": [line["train/relative_error"] for line in logged],
        "PSNR (dB)": [line["train/psnr"] for line in logged],
    }


def curves_figure(curves: Mapping[str, Mapping[str, list[float]]]) -> Any:
    """Draw a panel for each column over the steps.

    Args:
      curves: Results of :func:`scale_curves` by estimator.

    Returns:
      A matplotlib figure.
    """
    names = [name for name in next(iter(curves.values())) if name != "step"]
    figure, axes = new_figure(4.0 * len(names), 3.0, 1, len(names))
    for name, panel in zip(names, axes[0], strict=True):
        for estimator, columns in curves.items():
            panel.plot(columns["step"], columns[name], color=COLORS[estimator], label=estimator)
        panel.set(title=name, xlabel="step")
        if name != "PSNR (dB)":
            panel.set_yscale("log")
    axes[0][0].legend()
    return figure


def main(*, steps: int = 1000, output: str = "runs/rotation/curves.png") -> None:
    """Train with three estimators, and draw what happens to the scale of the latents.

    Args:
      steps: Length of each training.
      output: The picture.
    """
    check_positive(steps=steps)
    with tempfile.TemporaryDirectory() as directory:
        curves = {name: scale_curves(name, steps, Path(directory, name)) for name in COLORS}
    path = local_path(output, "--output")
    save_figure(path, curves_figure(curves))
    print(path)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    run(main, "python -m studies.rotation.scale", "--steps=500")
