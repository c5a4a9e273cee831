"""Matplotlib figures without global state; matplotlib is an optional dependency."""

import importlib
import io
import os
from types import ModuleType
from typing import Any

from PIL import Image

from vqjax.errors import UserError
from vqjax.runtime.files import atomic_file

INK = "#333333"
BLUE, ORANGE = "#2b6cb0", "#d9730d"
_PIXELS_PER_INCH = 110
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def matplotlib_module(name: str) -> ModuleType:
    """Import a module of matplotlib.

    Args:
      name: Such as ``"figure"``.

    Returns:
      The module.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise UserError('Figures need matplotlib, which is not installed: pip install "vqjax[plots]"') from error


def new_figure(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """Create a figure of equal panels in the common style.

    Args:
      width: Width in inches.
      height: Height in inches.
      rows: Rows of panels.
      columns: Columns of panels.
      **options: Arguments of matplotlib's ``Figure.subplots``.

    Returns:
      The figure, and its axes as an array ``[rows, columns]``.
    """
    figure = matplotlib_module("figure").Figure(figsize=(width, height), layout="constrained")
    with matplotlib_module("style").context(_STYLE):
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a figure as PNG; equal figures give equal bytes.

    Args:
      path: The file to write.
      figure: A matplotlib figure.
    """
    drawn = io.BytesIO()
    with matplotlib_module("style").context(_STYLE):
        figure.savefig(drawn, format="png", dpi=_PIXELS_PER_INCH)
    with Image.open(drawn) as image, atomic_file(path) as file:
        # A palette takes a third of the bytes and looks the same.
        image.convert("RGB").quantize(256).save(file, format="PNG", optimize=True)
