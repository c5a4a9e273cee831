"""Evaluation of a model on a split: metrics, the report, and the token file."""

from vqjax.data.token_file import Tokens, load_tokens, save_tokens
from vqjax.evaluation.clips import OfFrames, OverTime, clip_metrics
from vqjax.evaluation.collectors import BestAndWorst, CodeCounts, Collector, Pictures, Rows
from vqjax.evaluation.evaluate import EvaluationResult, evaluate
from vqjax.evaluation.fid import ReconstructionFID
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score
from vqjax.evaluation.fvd import ReconstructionFVD
from vqjax.evaluation.manifold import kernel_distance, precision_and_recall
from vqjax.evaluation.metric import ImageMean, Metric
from vqjax.evaluation.metrics import MSE, PSNR, SSIM, CodeUsage, ImageCount, TokenLosses, tokenizer_metrics
from vqjax.evaluation.report import terminal_table, write_page, write_report

__all__ = [
    "MSE",
    "PSNR",
    "SSIM",
    "BestAndWorst",
    "CodeCounts",
    "CodeUsage",
    "Collector",
    "EvaluationResult",
    "ImageCount",
    "ImageMean",
    "Metric",
    "Moments",
    "OfFrames",
    "OverTime",
    "Pictures",
    "ReconstructionFID",
    "ReconstructionFVD",
    "Rows",
    "TokenLosses",
    "Tokens",
    "clip_metrics",
    "evaluate",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_tokens",
    "precision_and_recall",
    "save_tokens",
    "terminal_table",
    "tokenizer_metrics",
    "write_page",
    "write_report",
]
