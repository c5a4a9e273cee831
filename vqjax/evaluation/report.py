"""Report of an evaluation: metric values, how each was measured, and pictures."""

import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vqjax.evaluation.evaluate import EvaluationResult
from vqjax.reporting import markdown_table, metrics_table, save_png
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import local_path

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.md"


def write_report(
    directory: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    context: Mapping[str, Any],
    pictures: Mapping[str, UInt8[np.ndarray, "height width 3"]],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write metrics.json, report.md and the pictures, each of which is replaced atomically.

    Args:
      directory: Directory for the report; created if it does not exist.
      result: The result of :func:`vqjax.evaluation.evaluate`.
      context: What was evaluated, such as dataset, split, checkpoint step and number of codes; the versions of
        vqjax, jax and flax are added.
      pictures: RGB images by the names of their files, without ``.png``.
      config: Hyper-parameters of the run, for metrics.json.

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> result = EvaluationResult({"images": 1}, {"images": "images of the split"}, {})
      >>> write_report(directory, result, context={"split": "test"}, pictures={"black": np.zeros([8, 8, 3], np.uint8)})
      >>> sorted(os.listdir(directory))
      ['black.png', 'metrics.json', 'report.md']
    """
    directory = local_path(directory, "directory")
    facts = {**context, **{f"{name}_version": _version(name) for name in ("vqjax", "jax", "flax")}}
    content = {"context": facts, "metrics": result.metrics, "protocol": result.protocol}
    if config is not None:
        content["config"] = config
    for name, picture in pictures.items():
        save_png(directory / f"{name}.png", picture)
    with atomic_file(directory / METRICS_FILE) as file:
        file.write((strict_json(content, indent=2) + "\n").encode())
    with atomic_file(directory / REPORT_FILE) as file:
        file.write(_markdown(result, facts, pictures).encode())


def terminal_table(result: EvaluationResult, context: Mapping[str, Any]) -> str:
    """Lay out the numbers for a terminal, under a line that says what was evaluated.

    Args:
      result: The result of :func:`vqjax.evaluation.evaluate`.
      context: What was evaluated, such as dataset, split and checkpoint step.

    Returns:
      The table as text, at most as wide as the terminal.

    Example:
      >>> result = EvaluationResult({"images": 1}, {"images": "images of the split, each seen once"}, {})
      >>> print(terminal_table(result, {"split": "test"}))
      split: test
      <BLANKLINE>
      metric  value  protocol
      ------  -----  -----------------------------------
      images      1  images of the split, each seen once
    """
    headline = ", ".join(f"{name}: {value}" for name, value in context.items())
    return f"{headline}\n\n{metrics_table(_rows(result))}"


def _markdown(result: EvaluationResult, facts: Mapping[str, Any], pictures: Iterable[str]) -> str:
    context = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    images = "\n\n".join(f"![{name}]({name}.png)" for name in pictures)
    table = markdown_table(("metric", "value", "protocol"), _rows(result), left=(0, 2))
    return f"# Evaluation\n\n{context}\n\n{table}\n\n{images}\n"


def _rows(result: EvaluationResult) -> list[tuple[str, str, str]]:
    return [(name, _format(value), result.protocol[name]) for name, value in result.metrics.items()]


def _format(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
