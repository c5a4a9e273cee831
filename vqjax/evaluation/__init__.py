"""Measuring a trained tokenizer: metrics, the report, and the token file."""

from vqjax.evaluation.evaluate import EvaluationResult, Reconstruction, evaluate
from vqjax.evaluation.report import PROTOCOL, terminal_table, write_report
from vqjax.evaluation.tokens import Tokens, load_tokens, save_tokens

__all__ = [
    "PROTOCOL",
    "EvaluationResult",
    "Reconstruction",
    "Tokens",
    "evaluate",
    "load_tokens",
    "save_tokens",
    "terminal_table",
    "write_report",
]
