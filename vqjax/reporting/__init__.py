"""Reporting of a run: the progress line, metric files, pictures and tables."""

from vqjax.reporting.pictures import comparison_sheet, save_png
from vqjax.reporting.progress import Progress
from vqjax.reporting.tables import markdown_table, metrics_table
from vqjax.reporting.writers import MetricWriter
from vqjax.runtime.files import atomic_file, strict_json

__all__ = [
    "MetricWriter",
    "Progress",
    "atomic_file",
    "comparison_sheet",
    "markdown_table",
    "metrics_table",
    "save_png",
    "strict_json",
]
