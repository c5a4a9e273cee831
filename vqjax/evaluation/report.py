"""Report of an evaluation: metric values, how each was measured, and pictures."""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vqjax.evaluation.evaluate import EvaluationResult
from vqjax.evaluation.page import PageImage, page
from vqjax.reporting import markdown_table, metrics_table, save_png
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import local_path

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.md"
PAGE_FILE = "report.html"


def write_report(
    directory: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    context: Mapping[str, Any],
    pictures: Mapping[str, UInt8[np.ndarray, "*frames height width 3"]],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write metrics.json, report.md and the pictures, each of which is replaced atomically.

    The page of an earlier evaluation (:func:`write_page`) is removed.

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
    facts = {**context, **_versions()}
    content = {"context": facts, "metrics": result.metrics, "protocol": result.protocol}
    if result.intervals:
        content["intervals"] = result.intervals
    if config is not None:
        content["config"] = config
    for name, picture in pictures.items():
        save_png(directory / f"{name}.png", picture)
    with atomic_file(directory / METRICS_FILE) as file:
        file.write(_bytes(strict_json(content, indent=2) + "\n"))
    with atomic_file(directory / REPORT_FILE) as file:
        file.write(_bytes(_markdown(result, facts, pictures)))
    (directory / PAGE_FILE).unlink(missing_ok=True)


def write_page(
    directory: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    context: Mapping[str, Any],
    caption: Callable[[int, int | None], str],
) -> None:
    """Write report.html, the page of pictures and numbers: see :func:`vqjax.evaluation.page.page`.

    Args:
      directory: Directory for the page; created if it does not exist.
      result: The result of :func:`vqjax.evaluation.evaluate`. The page has the images of :class:`BestAndWorst` and the
        histogram of :class:`CodeCounts`, if these collectors were among the metrics.
      context: What was evaluated; its ``dataset`` is the heading.
      caption: Function from the index of an image in the split, and its label if it has one, to what the page calls it.

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> result = EvaluationResult({"images": 1}, {"images": "images of the split"}, {})
      >>> write_page(directory, result, context={"split": "test"}, caption=lambda index, label: f"image {index}")
      >>> os.listdir(directory)
      ['report.html']
    """
    images, lists = _page_images(result.collected, caption)
    counts = [counts for name, counts in result.collected.items() if name.startswith("code_counts_")]
    facts = {name: value for name, value in {**context, **_versions()}.items() if name != "dataset"}
    title = f"Evaluation of {context['dataset']}" if "dataset" in context else "Evaluation"
    text = page(title, facts, _table(result), images=images, lists=lists, code_counts=counts)
    with atomic_file(local_path(directory, "directory") / PAGE_FILE) as file:
        file.write(_bytes(text))


def _page_images(
    collected: Mapping[str, np.ndarray], caption: Callable[[int, int | None], str]
) -> tuple[list[PageImage], dict[str, dict[str, list[int]]]]:
    """The distinct images of the lists of :class:`BestAndWorst`, and the lists."""
    places: dict[int, int] = {}
    images: list[PageImage] = []
    lists: dict[str, dict[str, list[int]]] = {}
    for list_name in (name.removesuffix("/index") for name in collected if name.endswith("/index")):
        rows = {
            name.removeprefix(f"{list_name}/"): x for name, x in collected.items() if name.startswith(f"{list_name}/")
        }
        for row, index in enumerate(rows["index"].tolist()):
            if index not in places:
                places[index] = len(images)
                images.append(_page_image({name: column[row] for name, column in rows.items()}, caption))
        name, _, title = list_name.partition("/")
        order = [places[index] for index in rows["index"].tolist()]
        lists.setdefault("first of the split" if name == "first" else name, {})[title.capitalize()] = order
    return images, lists


def _page_image(row: Mapping[str, Any], caption: Callable[[int, int | None], str]) -> PageImage:
    known = ("image", "reconstruction", "indices", "label", "index")
    label = int(row["label"]) if "label" in row else None
    values = {name: float(value) for name, value in row.items() if name not in known}
    return PageImage(row["image"], row["reconstruction"], caption(int(row["index"]), label), values, row.get("indices"))


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
    header, *rows = _table(result)
    table = markdown_table(header, rows, left=(0, len(header) - 1))
    return f"# Evaluation\n\n{context}\n\n{table}\n\n{images}\n"


def _rows(result: EvaluationResult) -> list[tuple[str, str, str]]:
    return [(name, _format(value), result.protocol[name]) for name, value in result.metrics.items()]


def _table(result: EvaluationResult) -> list[tuple[str, ...]]:
    """A row of headings and the rows under it, with intervals if there are any."""
    if not result.intervals:
        return [("metric", "value", "protocol"), *_rows(result)]
    ends = {name: f"{_format(low)} to {_format(high)}" for name, (low, high) in result.intervals.items()}
    rows = [(name, value, ends.get(name, ""), protocol) for name, value, protocol in _rows(result)]
    return [("metric", "value", "95 % interval", "protocol"), *rows]


def _format(value: float | int | None) -> str:
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def _bytes(text: str) -> bytes:
    """UTF-8, in which JSON stays JSON: names of files may hold bytes that are not text."""
    return text.encode(errors="backslashreplace")


def _versions() -> dict[str, str]:
    return {f"{name}_version": _version(name) for name in ("vqjax", "jax", "flax")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
