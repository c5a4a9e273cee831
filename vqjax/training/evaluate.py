"""Evaluates the checkpoint of a run, as eval.py does."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import load_splits
from vqjax.errors import UserError
from vqjax.evaluation import EvaluationResult, save_tokens, terminal_table, write_report
from vqjax.evaluation.evaluate import evaluate_model, evaluation_context
from vqjax.runtime.workdir import usable_workdir

SECONDS_BETWEEN_LINES = 10.0


def evaluate_workdir(
    workdir: str | Path,
    *,
    step: int | None = None,
    split: str = "eval",
    batch_size: int | None = None,
    export_tokens: str | Path | None = None,
) -> EvaluationResult:
    """Measures a trained tokenizer, prints the table and writes the report into ``workdir/eval``.

    Args:
      workdir: The run's directory.
      step: Which checkpoint; the newest by default.
      split: ``"eval"`` for the held-out images, ``"train"`` for the training images.
      batch_size: Images per batch, over which ``perplexity_batch`` is measured; the training batch by default.
      export_tokens: Where to write the indices of all images of the split (``.npz``), if anywhere.

    Returns:
      The numbers.

    Raises:
      UserError: There is no checkpoint or no data, or an argument is out of range.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size={batch_size} is not allowed: use a whole number of at least 1.")
    if export_tokens is not None:
        _check_tokens_file(Path(export_tokens))
    workdir = usable_workdir(workdir)
    tokenizer = load_tokenizer(workdir, step)
    config = ConfigDict(tokenizer.config)
    splits = load_splits(config.data)
    dataset = splits.train if split == "train" else splits.eval
    result = evaluate_model(
        tokenizer.model,
        tokenizer.variables,
        dataset,
        batch_size=batch_size or config.batch_size,
        collect_indices=export_tokens is not None,
        progress=_progress(len(dataset)),
    )
    split_name = config.data.train_split if split == "train" else config.data.eval_split
    num_codes = tokenizer.model.quantizer.num_codes
    context = evaluation_context(config, num_codes, dataset, tokenizer.step, split_name)
    directory = workdir / ("eval" if split == "eval" else "eval_train")
    print(terminal_table(result, context), flush=True)
    write_report(directory, result, context=context)
    print(f"report:  {directory}/report.md")
    print(f"picture: {directory}/reconstructions.png")
    if export_tokens is not None:
        save_tokens(export_tokens, result.indices, num_codes=num_codes, context=context)
        print(f"tokens:  {export_tokens}")
    return result


def _check_tokens_file(path: Path) -> None:
    """Before the evaluation rather than after it."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if path.suffix != ".npz" or path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(
            f"--export_tokens={path} is not allowed: use a file name that ends in .npz in a directory that can be "
            "written to."
        )


def _progress(total: int) -> Callable[[int], None]:
    started = shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            left = (now - started) / done * (total - done)
            print(f"evaluated {done}/{total} images  ETA {left:.0f} s", file=sys.stderr, flush=True)

    return show
