"""Tables, pictures and document of the study, from its records alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from studies.choosing.collapse_figure import collapse_figure
from studies.choosing.plane_figures import himmelblau_figure, surface_figure
from studies.choosing.runs import PLANE_ESTIMATORS
from studies.choosing.surfaces import SURFACES
from studies.choosing.variants import GROUPS, STARTS
from studies.common.document import table, write_filled
from studies.common.plotting import save_figure
from studies.common.records import Record, read_records
from studies.common.spread import with_spread

COMMAND = "python -m studies.choosing"
PARTS = ("cost", "surfaces", "himmelblau", *GROUPS)
_NOT_MEASURED = f"Not measured yet: `{COMMAND}`"
_COLLAPSE_COLUMNS = {
    "psnr": "PSNR (dB)",
    "codes_used": "codes used",
    "perplexity_split": "perplexity",
    "quantization_error": "quantization error",
    "norm_ratio": "mean abs(q)/abs(z)",
}

ByStart = Mapping[str, Sequence[Record]]


def document_path(output: Path) -> Path:
    """Where the document of an output directory is: beside it.

    Args:
      output: Such as ``docs/choosing``.

    Returns:
      Such as ``docs/choosing-a-quantizer.md``.

    Example:
      >>> document_path(Path("docs/choosing")).as_posix()
      'docs/choosing-a-quantizer.md'
    """
    return output.with_name(f"{output.name}-a-quantizer.md")


def write_pictures(output: Path) -> list[Path]:
    """Draws all pictures that there are records for.

    Args:
      output: Directory of the study.

    Returns:
      The files written.

    Raises:
      UserError: matplotlib is not installed.
    """
    figures = {}
    for surface, records in _fields(output).items():
        figures[f"surface_{surface}"] = surface_figure(surface, records)
    if records := _descents(output):
        figures["himmelblau"] = himmelblau_figure(records)
    for group, variants in _trainings(output).items():
        figures[group] = collapse_figure(variants)
    for name, figure in figures.items():
        save_figure(output / f"{name}.png", figure)
    return [output / f"{name}.png" for name in figures]


def write_document(output: Path) -> Path:
    """Fills the generated parts of the document, which is made if there is none.

    Args:
      output: Directory of the study.

    Returns:
      The document.
    """
    path = document_path(output)
    write_filled(path, "Choosing a quantizer: results", document_parts(output))
    return path


def document_parts(output: Path) -> dict[str, str]:
    """The generated parts of the document.

    Args:
      output: Directory of the study.

    Returns:
      Markdown by name.
    """
    groups = _trainings(output)
    return {
        "cost": _cost_part(output),
        "surfaces": _surfaces_part(output),
        "himmelblau": _himmelblau_part(output),
    } | {group: _collapse_part(groups.get(group), output, group) for group in GROUPS}


def _cost_part(output: Path) -> str:
    parts = {name: read_records(output / "results" / name) for name in ("surfaces", "himmelblau", "collapse")}
    rows = [
        [name, str(len(records)), tqdm.format_interval(sum(record.seconds for record in records))]
        for name, records in parts.items()
    ]
    return table(["part", "runs", "time, compilation included"], rows)


def _surfaces_part(output: Path) -> str:
    fields = _fields(output)
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
    pictures = [_picture(output, f"surface_{surface}", f"gradient fields, {surface}") for surface in fields]
    return "\n\n".join([*pictures, table(header, [[name, *cells] for name, cells in rows.items()])])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _himmelblau_part(output: Path) -> str:
    records = _descents(output)
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
    picture = _picture(output, "himmelblau", "descents of the first seed")
    return "\n\n".join([picture, table(["estimator", *columns.values(), "seeds with finite values"], rows)])


def _finite(record: Record) -> str:
    values = record.measured["value_at_points"]
    return f"{sum(value is not None for value in values)} of {len(values)}"


def _collapse_part(variants: Mapping[str, ByStart] | None, output: Path, group: str) -> str:
    if not variants:
        return _NOT_MEASURED
    sections = [_picture(output, group, f"{group}: every run, mean and sample standard deviation")]
    for start in next(iter(variants.values())):
        rows = [[name, *_collapse_cells(by_start[start])] for name, by_start in variants.items() if by_start[start]]
        columns = [*_COLLAPSE_COLUMNS.values(), "runs that stayed finite"]
        sections += [f"Initial codes **{start}**:", table(["variant", *columns], rows)]
    return "\n\n".join(sections)


def _collapse_cells(records: Sequence[Record]) -> list[str]:
    cells = [with_spread([record.measured.get(name) for record in records]) for name in _COLLAPSE_COLUMNS]
    finite = sum(not record.measured["diverged"] for record in records)
    return [*cells, f"{finite} of {len(records)}"]


def _picture(output: Path, name: str, caption: str) -> str:
    return f"![{caption}]({output.name}/{name}.png)"


def _fields(output: Path) -> dict[str, list[Record]]:
    by_surface: dict[str, list[Record]] = {surface: [] for surface in SURFACES}
    for record in read_records(output / "results" / "surfaces"):
        by_surface.setdefault(record.settings["surface"], []).append(record)
    return {surface: _in_order(records) for surface, records in by_surface.items() if records}


def _descents(output: Path) -> list[Record]:
    return _in_order(read_records(output / "results" / "himmelblau"))


def _in_order(records: Iterable[Record]) -> list[Record]:
    order = _rank(PLANE_ESTIMATORS)
    return sorted(records, key=lambda record: order(record.settings["estimator"]))


def _trainings(output: Path) -> dict[str, dict[str, ByStart]]:
    """The runs by group, variant and start, in the order of the table of variants."""
    found: dict[str, dict[str, dict[str, list[Record]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in read_records(output / "results" / "collapse"):
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


def _rank(names: Iterable[str]):
    """Sorts by the place in ``names``; what is not among them comes last, by name."""
    places = {name: place for place, name in enumerate(names)}
    return lambda name: (places.get(name, len(places)), name)
