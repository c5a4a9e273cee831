"""Document of the reproduction, rebuilt from its records."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from studies.common.document import with_spread, write_document
from studies.common.records import Record, Results
from studies.reproduction.figures import COLUMNS, FIGURES, Runs, write_figures
from studies.reproduction.runs import (
    BETAS,
    COMMITMENT_WEIGHT,
    SCALES,
    SIZES,
    TABLES,
    Configuration,
    configuration_of,
    run_of,
)
from studies.reproduction.training import Scale
from studies.reproduction.variants import PROTOCOLS
from vqjax.errors import UserError
from vqjax.reporting import markdown_table

DOCUMENT = "reproduction.md"

_COMMAND = "python -m studies.reproduction"


class Published(NamedTuple):
    """Results that the CIFAR-10 study printed, and those that it stored.

    Attributes:
      sizes: Table 2 by row: total, reconstruction, codebook, perplexity.
      betas: Table 3 by split and commitment weight: the same four numbers.
      runs: Stored runs by name, with their settings and these four numbers of every epoch.
    """

    sizes: dict[str, list[float]]
    betas: dict[str, dict[str, list[float]]]
    runs: dict[str, dict[str, Any]]

    def at(self, configuration: Configuration, epochs: int, split: str) -> list[list[float]]:
        """Return the four numbers of each stored run of a configuration after a number of epochs."""
        return [
            run[split][epochs - 1]
            for run in self.runs.values()
            if run["num_codes"] == configuration.num_codes
            and run["commitment_weight"] == configuration.commitment_weight
            and len(run[split]) >= epochs
        ]


def write_report(records: Path, docs: Path) -> list[Path]:
    """Rebuild document and figures from the records.

    Args:
      records: Directory of the records: ``results.jsonl``, ``snapshots`` and ``published.json``.
      docs: Directory of all documents.

    Returns:
      The files written.
    """
    results = Results(records / "results.jsonl")
    study = {name: by_configuration(results, scale) for name, scale in SCALES.items()}
    study = {name: runs for name, runs in study.items() if runs}
    published = read_published(records / "published.json")
    figures = write_figures(records, docs, study, published.runs)
    parts = document_parts(study, published, figures)
    return [*figures, write_document(docs / DOCUMENT, "Reproduction: results", parts)]


def read_published(path: Path) -> Published:
    """Read the published results of the CIFAR-10 study.

    Args:
      path: ``published.json``; need not exist.

    Returns:
      The results; empty without the file.
    """
    if not path.exists():
        return Published({}, {}, {})
    content = json.loads(path.read_text())
    return Published(content["printed"]["table_2"], content["printed"]["table_3"], content["runs"])


def by_configuration(results: Results, scale: Scale) -> Runs:
    """Group the records of a scale by configuration.

    Args:
      results: Records of the study.
      scale: Size of the runs.

    Returns:
      Records of all seeds by configuration.

    Raises:
      UserError: A record has the name of a run and other settings, or the settings of a run and another name.
    """
    by_configuration, runs = defaultdict(list), []
    for record in results.records(scale.name):
        configuration = configuration_of(record.settings)
        runs.append(run_of(scale, configuration, record.settings["seed"]))
        by_configuration[configuration].append(record)
    if misnamed := results.unfinished(runs):
        raise UserError(f"{results.path} has the results of {misnamed[0].name} under another name. Rename them.")
    return dict(by_configuration)


def document_parts(study: dict[str, Runs], published: Published, figures: Sequence[Path]) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      study: Runs by scale.
      published: Published results of the CIFAR-10 study.
      figures: Files of the figures.

    Returns:
      Markdown by name.
    """
    makers: dict[str, Callable[[Runs, Scale], str]] = {
        "betas": lambda runs, scale: _betas(runs, scale, published),
        "sizes": lambda runs, scale: _sizes(runs, scale, published),
        "estimators": lambda runs, scale: _compared(runs, TABLES["estimators"]),
        "latents": lambda runs, scale: _compared(runs, TABLES["latents"]),
        "indices": lambda runs, scale: _indices(runs),
    }
    parts = {name: _per_scale(study, name, make) for name, make in makers.items()}
    stored = [
        (f"stored, {run['num_codes']:,} codes, epoch {len(run['train'])}", run["train"][-1])
        for run in published.runs.values()
        if run["commitment_weight"] == COMMITMENT_WEIGHT
    ]
    of_sizes = [(name, COMMITMENT_WEIGHT, numbers) for name, numbers in [*published.sizes.items(), *stored]]
    parts["printed_sizes"] = _printed("Table 2", of_sizes)
    parts["printed_betas"] = _printed(
        "Table 3",
        [
            (f"{split}, β = {beta}", float(beta), numbers)
            for split, of_split in published.betas.items()
            for beta, numbers in of_split.items()
        ],
    )
    parts["identity"] = _identity(study)
    captions = {figure.stem.replace("_", " "): f"{FIGURES}/{figure.name}" for figure in figures}
    parts["figures"] = "\n\n".join(f"**{caption}**\n\n![{caption}]({link})" for caption, link in captions.items())
    return parts


def _per_scale(study: dict[str, Runs], name: str, make: Callable[[Runs, Scale], str]) -> str:
    sections, tables = [], "betas" if name == "indices" else name
    for scale_name, runs in study.items():
        if content := make(runs, SCALES[scale_name]):
            heading = f"**{SCALES[scale_name].length}** (`{_COMMAND} --scale={scale_name}"
            sections.append(f"{heading} --tables={tables}`)\n\n{content}")
    return "\n\n".join(sections) or f"Not run yet: `{_COMMAND} --tables={tables}`"


def _betas(runs: Runs, scale: Scale, published: Published) -> str:
    configurations = [configuration for configuration in TABLES["betas"] if configuration in runs]
    parts = []
    for split in ("train", "test"):
        rows = []
        for beta in BETAS:
            of_beta = [configuration for configuration in configurations if configuration.commitment_weight == beta]
            if of_beta:
                rows += _published_rows(f"{beta}", of_beta[0], scale, split, published)
                rows += [_row([f"{beta}", chosen.variant], runs[chosen], split) for chosen in of_beta]
        if rows:
            header = ["β", "", *COLUMNS, "seeds"]
            title = f"{'Training' if split == 'train' else 'Testing'}, last epoch:"
            parts.append(f"{title}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def _sizes(runs: Runs, scale: Scale, published: Published) -> str:
    rows = []
    for size, num_codes in SIZES.items():
        of_size = [Configuration(name, num_codes=num_codes) for name in PROTOCOLS]
        of_size = [configuration for configuration in of_size if configuration in runs]
        name = f"{size}, {num_codes} codes"
        if of_size:
            rows += _published_rows(name, of_size[0], scale, "train", published)
            rows += [_row([name, chosen.variant], runs[chosen], "train") for chosen in of_size]
    return f"Training, last epoch:\n\n{markdown_table(['size', '', *COLUMNS, 'seeds'], rows)}" if rows else ""


def _published_rows(
    name: str, configuration: Configuration, scale: Scale, split: str, published: Published
) -> list[list[str]]:
    """One row per stored run at the same epoch; none at scales with fewer images."""
    if not scale.is_published:
        return []
    return [
        [name, f"published, epoch {scale.epochs}", *(f"{number:.4g}" for number in numbers), "1"]
        for numbers in published.at(configuration, scale.epochs, split)
    ]


def _row(names: list[str], records: Sequence[Record], split: str) -> list[str]:
    return [*names, *(_cell(records, split, measured) for measured in COLUMNS.values()), f"{len(records)}"]


def _compared(runs: Runs, configurations: Sequence[Configuration]) -> str:
    measured = {
        "reconstruction": "reconstruction_mse",
        "PSNR (dB)": "psnr",
        "quantization error": "commitment_loss",
        "angle (rad)": "angle",
        "perplexity": "perplexity",
        "perplexity of the split": "perplexity_split",
    }
    rows = [
        [
            "rotation" if configuration.variant == "corrected" else configuration.variant,
            *(_cell(runs[configuration], "test", name) for name in measured.values()),
            with_spread([100 * _last(record, "test")["usage_split"] for record in runs[configuration]]),
            f"{len(runs[configuration])}",
        ]
        for configuration in configurations
        if configuration in runs
    ]
    return markdown_table(["", *measured, "codes used (%)", "seeds"], rows) if rows else ""


def _indices(runs: Runs) -> str:
    """Reconstruction of faithful runs from indices alone, beside that of the study."""
    rows = [
        [
            f"{configuration.commitment_weight}",
            _cell(runs[configuration], "test", "reconstruction_mse"),
            _cell(runs[configuration], "test", "indices_only_mse"),
            _cell(runs[configuration], "test", "norm_ratio"),
        ]
        for configuration in TABLES["betas"]
        if configuration in runs and configuration.variant == "faithful"
    ]
    header = ["β", "reconstruction, as the study measures it", "from indices alone", "code's length over the vector's"]
    return markdown_table(header, rows) if rows else ""


def _printed(name: str, printed: Sequence[tuple[str, float, list[float]]]) -> str:
    """Printed rows beside the total that their parts give."""
    rows = [
        [row, *(f"{number:g}" for number in numbers), f"{numbers[1] + (1 + beta) * numbers[2]:.4f}"]
        for row, beta, numbers in printed
    ]
    return markdown_table([f"printed in {name}", *COLUMNS, "reconstruction + (1 + β) codebook"], rows)


def _identity(study: dict[str, Runs]) -> str:
    records = [
        record
        for runs in study.values()
        for configuration, of_seeds in runs.items()
        if configuration.variant == "faithful"
        for record in of_seeds
    ]
    errors = [record.measured["identity_error"] for record in records if record.measured["identity_error"] is not None]
    if not errors:
        return "Whether this holds has not been measured yet."
    epochs = sum(len(record.measured["epochs"]) for record in records)
    return (
        f"Largest difference between total and reconstruction + (1 + β) codebook over the {epochs} epochs of all "
        f"{len(records)} faithful runs, training and testing: {max(errors):.1e}."
    )


def _last(record: Record, split: str) -> dict[str, float]:
    """Means over the last epoch of a run."""
    return record.measured["epochs"][-1][split]


def _cell(records: Sequence[Record], split: str, measured: str) -> str:
    return with_spread([_last(record, split)[measured] for record in records])
