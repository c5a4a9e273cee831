"""Document and figures of the study, rebuilt from its records."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from studies.choosing.figures import collapse_figure, himmelblau_figure, surface_figure
from studies.choosing.runs import PLANE_ESTIMATORS
from studies.choosing.surfaces import SURFACES
from studies.choosing.variants import GROUPS, STARTS
from studies.common.document import not_measured, with_spread
from studies.common.records import Record, Results
from vqjax.reporting import markdown_table
from vqjax.reporting.figures import save_figure

DOCUMENT, FIGURES = "choosing-a-quantizer.md", "choosing"
"""The document and the directory of its figures, from the directory of all documents."""

PARTS = ("surfaces", "himmelblau", "collapse")
"""Experiments of the study; the names of their runs start with these."""

_NOT_MEASURED = not_measured("choosing")
_COLLAPSE_COLUMNS = {
    "psnr": "PSNR (dB)",
    "codes_used": "codes used",
    "perplexity_split": "perplexity",
    "quantization_error": "quantization error",
    "norm_ratio": "mean abs(q)/abs(z)",
}

ByStart = Mapping[str, Sequence[Record]]


def write_figures(results: Results, docs: Path) -> list[Path]:
    """Draw all figures that there are records for.

    Args:
      results: Records of the study.
      docs: Directory of all documents.

    Returns:
      The files written.

    Raises:
      UserError: matplotlib is not installed.
    """
    figures = {}
    for surface, records in _fields(results).items():
        figures[f"surface_{surface}"] = surface_figure(surface, records)
    if records := _descents(results):
        figures["himmelblau"] = himmelblau_figure({record.settings["estimator"]: record for record in records})
    for group, variants in _trainings(results).items():
        figures[group] = collapse_figure(variants)
    paths = [docs / FIGURES / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(path, figure)
    return paths


def document_parts(results: Results) -> dict[str, str]:
    """Make the generated parts of the document.

    Args:
      results: Records of the study.

    Returns:
      Markdown by name.
    """
    groups = _trainings(results)
    return {
        "cost": _cost_part(results),
        "surfaces": _surfaces_part(results),
        "himmelblau": _himmelblau_part(results),
    } | {group: _collapse_part(groups.get(group), group) for group in GROUPS}


def _cost_part(results: Results) -> str:
    parts = {name: results.records(name) for name in PARTS}
    rows = [
        [name, str(len(records)), tqdm.format_interval(sum(record.seconds for record in records))]
        for name, records in parts.items()
    ]
    return markdown_table(["part", "runs", "time, compilation included"], rows)


def _surfaces_part(results: Results) -> str:
    fields = _fields(results)
    if not fields:
        return _NOT_MEASURED
    header, rows = ["estimator"], defaultdict(list)
    for surface, records in fields.items():
        header += [f"cosine, {surface}", f"descends, {surface}"]
        for record in records:
            measured = record.measured
            rows[record.settings["estimator"]] += [
                _number(measured["cosine"], ".2f"),
                _number(measured["descends"], ".0%"),
            ]
    figures = [_figure(f"surface_{surface}", f"gradient fields, {surface}") for surface in fields]
    return "\n\n".join([*figures, markdown_table(header, [[name, *cells] for name, cells in rows.items()])])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _himmelblau_part(results: Results) -> str:
    records = _descents(results)
    if not records:
        return _NOT_MEASURED
    columns = {
        "value_at_points": "f(z)",
        "value_at_codes": "f(q)",
        "quantization_error": "quantization error",
        "codes_used": "codes used",
    }
    rows = [
        [record.settings["estimator"], *(with_spread(record.measured[name]) for name in columns), _finite(record)]
        for record in records
    ]
    figure = _figure("himmelblau", "descents of the first seed")
    return "\n\n".join([figure, markdown_table(["estimator", *columns.values(), "seeds with finite values"], rows)])


def _finite(record: Record) -> str:
    values = record.measured["value_at_points"]
    return f"{sum(value is not None for value in values)} of {len(values)}"


def _collapse_part(variants: Mapping[str, ByStart] | None, group: str) -> str:
    if not variants:
        return _NOT_MEASURED
    sections = [_figure(group, f"{group}: every run, mean and sample standard deviation")]
    for start in next(iter(variants.values())):
        rows = [[name, *_collapse_cells(by_start[start])] for name, by_start in variants.items() if by_start[start]]
        columns = [*_COLLAPSE_COLUMNS.values(), "runs that stayed finite"]
        sections += [f"Initial codes **{start}**:", markdown_table(["variant", *columns], rows)]
    return "\n\n".join(sections)


def _collapse_cells(records: Sequence[Record]) -> list[str]:
    cells = [with_spread([record.measured.get(name) for record in records]) for name in _COLLAPSE_COLUMNS]
    finite = sum(not record.measured["diverged"] for record in records)
    return [*cells, f"{finite} of {len(records)}"]


def _figure(name: str, caption: str) -> str:
    return f"![{caption}]({FIGURES}/{name}.png)"


def _fields(results: Results) -> dict[str, list[Record]]:
    """Gradient fields by surface, in the order of the estimators."""
    by_surface: dict[str, list[Record]] = {surface: [] for surface in SURFACES}
    for record in results.records("surfaces"):
        by_surface.setdefault(record.settings["surface"], []).append(record)
    return {surface: _in_order(records) for surface, records in by_surface.items() if records}


def _descents(results: Results) -> list[Record]:
    return _in_order(results.records("himmelblau"))


def _in_order(records: Iterable[Record]) -> list[Record]:
    rank = _rank(PLANE_ESTIMATORS)
    return sorted(records, key=lambda record: rank(record.settings["estimator"]))


def _trainings(results: Results) -> dict[str, dict[str, ByStart]]:
    """Trainings by group, variant and initial codes, in the order of ``GROUPS`` and ``STARTS``."""
    found: dict[str, dict[str, dict[str, list[Record]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in results.records("collapse"):
        settings = record.settings
        found[settings["group"]][settings["variant"]][settings["start"]].append(record)
    starts = {start for variants in found.values() for by_start in variants.values() for start in by_start}
    starts = sorted(starts, key=_rank(STARTS))
    return {
        group: {
            name: {start: found[group][name][start] for start in starts}
            for name in sorted(found[group], key=_rank(variants))
        }
        for group, variants in GROUPS.items()
        if group in found
    }


def _rank(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """Sort key: the place in ``names``; unknown names come last, by name."""
    places = {name: place for place, name in enumerate(names)}
    return lambda name: (places.get(name, len(places)), name)
