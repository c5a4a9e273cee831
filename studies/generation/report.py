"""Tables of docs/generation.md, rebuilt from the records."""

from collections.abc import Callable, Mapping
from typing import Any

from studies.common.document import percent
from studies.common.records import Record, Results, slug
from studies.generation.runs import MODELS, STEPS, TOKENIZERS
from vqjax.reporting import markdown_table

DOCUMENT, PICTURES = "generation.md", "generation"
"""The document and the directory of its pictures, from the directory of all documents."""

_NOT_YET = "Not measured yet: `python -m studies.generation`"

_LIKELIHOODS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "model": lambda measured: measured["bits"],
    "frequencies of codes": lambda measured: measured["unigram_bits"],
    "pairs of neighbors": lambda measured: measured["bigram_bits"],
}
_IMAGES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "distance of samples": lambda measured: measured["distance_samples"],
    "of reconstructions": lambda measured: measured["distance_reconstructions"],
    "of tokens by frequency": lambda measured: measured["distance_unigram"],
    "gap closed (%)": lambda measured: percent(measured["gap_closed"]),
    "recognized samples (%)": lambda measured: percent(measured["recognized_samples"]),
    "reconstructions (%)": lambda measured: percent(measured["recognized_reconstructions"]),
    "images (%)": lambda measured: percent(measured["recognized_originals"]),
    "to the nearest training image": lambda measured: measured["nearest_samples"],
    "from held-out images": lambda measured: measured["nearest_originals"],
}


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    parts = {}
    for scale in STEPS:
        found = {
            (of["tokenizer"], of["model"]): record for record in results.records(scale) for of in [record.settings]
        }
        records = {key: found[key] for name in TOKENIZERS for model in MODELS if (key := (name, model)) in found}
        parts[scale] = _of_scale(records) if records else _NOT_YET
    return parts


def _of_scale(records: Mapping[tuple[str, str], Record]) -> str:
    """Tables and pictures of the runs of a scale."""
    blocks = []
    for title, columns in (("Bits per token of held-out images:", _LIKELIHOODS), ("Images:", _IMAGES)):
        rows = [[*key, *(f"{of(record.measured):.4g}" for of in columns.values())] for key, record in records.items()]
        blocks += [title, markdown_table(["tokenizer", "model", *columns], rows)]
    for (tokenizer, model), record in records.items():
        place = f"{PICTURES}/{slug(record.run)}"
        blocks += [f"Samples of the {model} model over {tokenizer}:", f"![samples]({place}_samples.png)"]
        blocks += [f"![their nearest training images]({place}_nearest.png)"]
        curve = ", ".join(f"{step:,}: {bits:.3f}" for step, bits in record.measured["curve"])
        blocks.append(f"Held-out bits per token by step: {curve}")
    return "\n\n".join(blocks)
