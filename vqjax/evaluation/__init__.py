"""Evaluation of a model on a split: metrics, the report, and the token file."""

from vqjax.evaluation.collectors import Collector, Pictures, Rows
from vqjax.evaluation.evaluate import EvaluationResult, evaluate
from vqjax.evaluation.metric import ImageMean, Metric
from vqjax.evaluation.metrics import MSE, PSNR, SSIM, CodeUsage, ImageCount, TokenLosses, tokenizer_metrics
from vqjax.evaluation.report import terminal_table, write_report
from vqjax.evaluation.tokens import Tokens, load_tokens, save_tokens

__all__ = [
    "MSE",
    "PSNR",
    "SSIM",
    "CodeUsage",
    "Collector",
    "EvaluationResult",
    "ImageCount",
    "ImageMean",
    "Metric",
    "Pictures",
    "Rows",
    "TokenLosses",
    "Tokens",
    "evaluate",
    "load_tokens",
    "save_tokens",
    "terminal_table",
    "tokenizer_metrics",
    "write_report",
]
