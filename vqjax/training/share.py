"""Tokenizers of runs in a form to share."""

import json
from pathlib import Path

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.errors import UserError
from vqjax.evaluation.report import METRICS_FILE, REPORT_FILE
from vqjax.models.pretrained import WEIGHTS
from vqjax.models.tokenizer import Tokenizer
from vqjax.runtime.paths import local_path
from vqjax.runtime.remote import local_copy
from vqjax.training.import_run import import_origin


def share_tokenizer(
    *,
    workdir: str | Path,
    out: str | Path | None = None,
    hub: str | None = None,
    private: bool = False,
    step: int | None = None,
    best: bool = False,
) -> None:
    """Write the tokenizer of a run into a directory for others, or upload it: weights, config and a card.

    The card has the evaluation of the same checkpoint (vqjax eval). vqjax.Tokenizer.from_pretrained reads it, without
    the packages of the trainer.

    Args:
      workdir: Directory of the run, or its URL.
      out: Directory for the files.
      hub: Name on the hub, as OWNER/NAME; needs the extra hub, and hf auth login.
      private: A new one on the hub is private.
      step: Step of the checkpoint; the newest by default.
      best: The checkpoint with the best value of the metric config.keep_best instead.

    Raises:
      UserError: There is no such tokenizer, or neither out nor hub is given.
    """
    if out is None and hub is None:
        raise UserError("--out must be a directory unless --hub is given, got neither; give one of the two.")
    if private and hub is None:
        raise UserError("--private must be left out without --hub, got True; the files of --out are your own.")
    with local_copy(workdir, "--workdir") as (directory, _):
        tokenizer = load_tokenizer(directory, step, best=best)
        card = _card(tokenizer, local_path(directory) / "eval")
    if out is not None:
        written = tokenizer.save_pretrained(local_path(out, "--out"), card=card)
        print(f"tokenizer: {written}, {(written / WEIGHTS).stat().st_size / 1e6:.1f} MB of weights")
    if hub is not None:
        print(f"tokenizer: {tokenizer.push_to_hub(hub, private=private, card=card)}", flush=True)


def number_of_codes(tokenizer: Tokenizer) -> str:
    """Say how many codes a tokenizer has; several numbers where its codebooks are of several sizes.

    Args:
      tokenizer: The tokenizer.
    """
    return " and ".join(f"{size:,}" for size in dict.fromkeys(tokenizer.model.quantizer.codebook_sizes))


def _card(tokenizer: Tokenizer, evaluation: Path) -> str:
    """What the tokenizer is, and its evaluation if there is one of this checkpoint."""
    model, quantizer = (tokenizer.config[group]["name"] for group in ("model", "quantizer"))
    codes = number_of_codes(tokenizer)
    trained = f"trained for {tokenizer.step:,} steps on images of `{tokenizer.config['data']['source']}`"
    if (origin := import_origin(evaluation.parent)) is not None:
        trained = f"imported from {origin}" + (f", then {trained}" if tokenizer.step else "")
    title = f"# Image tokenizer\n\nThe model `{model}` with the quantizer `{quantizer}` of {codes} codes, {trained}."
    try:
        of_step = json.loads((evaluation / METRICS_FILE).read_bytes())["context"]["checkpoint_step"]
        report = (evaluation / REPORT_FILE).read_text()
    except (OSError, ValueError, KeyError, TypeError):
        of_step = None
    if of_step != tokenizer.step:
        return title
    lines = [line for line in report.splitlines() if not line.startswith("![")]
    return "\n\n".join([title, "\n".join(lines).replace("# Evaluation", "## Evaluation", 1)])
