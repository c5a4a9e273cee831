"""Reporting of a run: the progress line, metric files, pictures and tables."""

from vqjax.reporting.pictures import comparison_sheet, save_png, sheet
from vqjax.reporting.progress import Progress
from vqjax.reporting.tables import markdown_table, metrics_table
from vqjax.reporting.writers import MetricWriter

__all__ = [
    "MetricWriter",
    "Progress",
    "comparison_sheet",
    "markdown_table",
    "metrics_table",
    "save_png",
    "sheet",
]
