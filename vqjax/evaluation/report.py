"""The report of an evaluation: numbers that say how they were measured, and a picture."""

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vqjax.evaluation.evaluate import EvaluationResult
from vqjax.reporting import (
    atomic_file,
    comparison_sheet,
    markdown_table,
    metrics_table,
    save_png,
    strict_json,
)

PROTOCOL = {
    "images": "images of the split, each seen once",
    "batch_size": "images per batch, padding of the last one included",
    "mse_01": "mean squared error, pixels in [0, 1], reconstruction clipped, mean over images",
    "mse_pm1": "the same with pixels in [-1, 1]",
    "variance_01": "variance over all pixels and channels of the split, pixels in [0, 1]",
    "mse_over_variance": "mse_01 / variance_01",
    "psnr": "dB, per image, pixels in [0, 1], reconstruction clipped, capped at 100, mean over images",
    "psnr_mean_color": "the same when each image is replaced by its own mean color",
    "psnr_gain": "psnr - psnr_mean_color",
    "ssim": "Gaussian window of 11, sigma 1.5, per channel, pixels in [0, 1], reconstruction clipped",
    "quantization_error": "mean squared distance of latents to their codes, per dimension",
    "codebook_loss": "loss that pulls codes to latents, as the quantizer reports it, mean over tokens",
    "commitment_loss": "loss that pulls latents to codes, as the quantizer reports it, mean over tokens",
    "perplexity_batch": "exp(entropy) of the codes of one batch of batch_size, mean over codebooks and full batches",
    "perplexity_split": "exp(entropy) of the codes of the whole split, mean over codebooks",
    "usage_split": "share of codes used at least once in the split",
    "dead_codes_split": "codes never used in the split",
    "tokens_per_image": "indices per image",
    "bits_per_image": "tokens_per_image * log2(number of codes)",
    "entropy_bits_per_image": "tokens_per_image * log2(perplexity_split)",
}

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.md"
PICTURE_FILE = "reconstructions.png"


def write_report(directory: str | os.PathLike[str], result: EvaluationResult, *, context: Mapping[str, Any]) -> None:
    """Writes metrics.json, report.md and reconstructions.png, each replaced only when the new one is whole.

    Args:
      directory: Where to write; made if missing.
      result: What `evaluate` returned, of RGB images.
      context: What was evaluated, such as dataset, split, checkpoint step and number of codes; the versions of
        vqjax, jax and flax are added.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> images = np.zeros([1, 8, 8, 3], np.uint8)
      >>> directory = tempfile.mkdtemp()
      >>> write_report(directory, EvaluationResult({"images": 1}, images, images, None), context={"split": "test"})
      >>> sorted(os.listdir(directory))
      ['metrics.json', 'reconstructions.png', 'report.md']
    """
    directory = Path(directory)
    facts = {**context, **{f"{name}_version": _version(name) for name in ("vqjax", "jax", "flax")}}
    content = {
        "context": facts,
        "metrics": result.metrics,
        "protocol": {name: PROTOCOL[name] for name in result.metrics},
    }
    save_png(directory / PICTURE_FILE, comparison_sheet(result.originals, result.reconstructions))
    with atomic_file(directory / METRICS_FILE) as file:
        file.write((strict_json(content, indent=2) + "\n").encode())
    with atomic_file(directory / REPORT_FILE) as file:
        file.write(_markdown(result, facts).encode())


def terminal_table(result: EvaluationResult, context: Mapping[str, Any]) -> str:
    """Lays out the numbers for a terminal, under a line that says what was evaluated.

    Args:
      result: What `evaluate` returned.
      context: What was evaluated, such as dataset, split and checkpoint step.

    Returns:
      Lines joined by newlines, as wide as the terminal.

    Example:
      >>> import numpy as np
      >>> images = np.zeros([1, 8, 8, 3], np.uint8)
      >>> print(terminal_table(EvaluationResult({"images": 1}, images, images, None), {"split": "test"}))
      split: test
      <BLANKLINE>
      metric  value  protocol
      ------  -----  -----------------------------------
      images      1  images of the split, each seen once
    """
    headline = ", ".join(f"{name}: {value}" for name, value in context.items())
    return f"{headline}\n\n{metrics_table(_rows(result))}"


def _markdown(result: EvaluationResult, facts: Mapping[str, Any]) -> str:
    context = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    picture = f"![Originals above their reconstructions]({PICTURE_FILE})"
    return f"# Evaluation\n\n{context}\n\n{markdown_table(_rows(result))}\n\n{picture}\n"


def _rows(result: EvaluationResult) -> list[tuple[str, str, str]]:
    return [(name, _format(value), PROTOCOL[name]) for name, value in result.metrics.items()]


def _format(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
