"""The picture report: one HTML page that needs no network."""

import base64
import functools
import hashlib
import html
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vqjax.errors import UserError
from vqjax.reporting.pictures import check_pairs, to_rgb
from vqjax.runtime.files import strict_json

MOST_IMAGES = 40
"""Most distinct images on a page; each is there twice, as PNG."""

MOST_PIXELS = 2**20
"""Most pixels of these images together, so that a page of large ones stays below about 10 MB."""

MOST_CODES = 2**18
"""Most codes of a histogram, over all codebooks."""

_TILES = 6
_HEADLINES = (
    "psnr",
    "ssim",
    "lpips",
    "rfid",
    "ris",
    "usage_split",
    "perplexity_split",
    "bits_per_image",
    "bits_per_clip",
)


@dataclass(frozen=True)
class PageImage:
    """An image of the page.

    Attributes:
      original: Pixels, of 1 (gray), 3 (RGB) or 4 (RGB and opacity) channels.
      reconstruction: Its reconstruction, of the same shape.
      caption: What the page calls it.
      values: Values of metrics for this image, by name.
      indices: Its tokens ``[height, width]`` or ``[tokens]``, with further axes for the stages or groups of each;
        negative where there is no token. None if there are none.
    """

    original: UInt8[np.ndarray, "height width channels"]
    reconstruction: UInt8[np.ndarray, "height width channels"]
    caption: str
    values: Mapping[str, float]
    indices: Int[np.ndarray, "..."] | None = None


def page(
    title: str,
    facts: Mapping[str, Any],
    table: Sequence[Sequence[str]],
    *,
    images: Sequence[PageImage] = (),
    lists: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    code_counts: Sequence[Int[np.ndarray, " _"]] = (),
) -> str:
    """Build a page of pictures and numbers, with all that it shows in it.

    It compares each original with its reconstruction, with a slider and a map of their difference; shows the token of
    each patch, and where else its code is; and counts codes. It works with mouse, keyboard and touch, in light and dark
    colors and on paper. A policy of its content forbids every request and every script but its own.

    Args:
      title: Heading.
      facts: What was evaluated, by name.
      table: Rows of text under a row of headings: of each number first the name, then the value, last the protocol.
      images: Images of one shape, with indices of one shape.
      lists: Images to choose from, as positions in ``images``, by the name of a choice and then by a heading within it,
        the most telling first. The page has the first ones of all lists, at most :data:`MOST_IMAGES` with at most
        :data:`MOST_PIXELS`, but one in any case.
      code_counts: How often each code is used, per codebook; without a histogram if there are more than
        :data:`MOST_CODES`.

    Returns:
      The text of an HTML file.

    Raises:
      UserError: The images, or their indices, have different shapes, or are not 8-bit images.

    Example:
      >>> gray = np.full([8, 8, 3], 127, np.uint8)
      >>> image = PageImage(gray, gray, "gray", {"psnr": 100.0}, np.zeros([2, 2], np.int32))
      >>> table = [("metric", "value", "protocol"), ("images", "1", "images of the split")]
      >>> text = page("Gray", {"split": "test"}, table, images=[image], lists={"all": {"": [0]}})
      >>> text.startswith("<!DOCTYPE html>"), "https:" in text
      (True, False)
    """
    lists, kept, left_out = _within_limits(lists or {}, images)
    shown = [images[place] for place in kept]
    if shown:
        check_pairs(*(_stacked(name, shown) for name in ("original", "reconstruction")))
    num_codes = sum(len(counts) for counts in code_counts)
    height, width = shown[0].original.shape[:2] if shown else (1, 1)
    content = {
        "images": [_image(image) for image in shown],
        "lists": lists,
        "codebooks": [counts.tolist() for counts in code_counts] if num_codes <= MOST_CODES else [],
        "tokens": None,
        "width": width,
        "height": height,
    }
    if shown and shown[0].indices is not None:
        layout, tokens = _laid_out(_stacked("indices", shown), height / width, len(code_counts))
        content["tokens"] = layout
        for image, of_image in zip(content["images"], tokens, strict=True):
            image["tokens"] = of_image
    tiles = _tiles(table)
    return _filled(
        {
            "title": html.escape(title),
            "facts": "".join(f"<li>{_text(name)} <b>{_text(value)}</b></li>" for name, value in facts.items()),
            "tiles": "".join(f"<li><b>{_text(value)}</b><span>{_text(name)}</span></li>" for name, value in tiles),
            "table": _table(table),
            "footer": html.escape(_footer(len(shown), left_out, num_codes)),
            # In a script element, a "<" might begin its end.
            "data": strict_json(content).replace("<", "\\u003c"),
        }
    )


def _within_limits(
    lists: Mapping[str, Mapping[str, Sequence[int]]], images: Sequence[PageImage]
) -> tuple[list[dict[str, Any]], list[int], int]:
    """The lists of the kept images as the page has them, the positions of these in ``images``, and how many are not."""
    rows = [row for choice in lists.values() for row in choice.values()]
    # The first of every list before the second of any.
    by_rank = itertools.chain.from_iterable(itertools.zip_longest(*rows))
    wanted = list(dict.fromkeys(place for place in by_rank if place is not None))
    size = images[0].original[..., 0].size if images else 1
    kept = wanted[: min(MOST_IMAGES, max(1, MOST_PIXELS // size))]
    position = {place: new for new, place in enumerate(kept)}
    shown = []
    for name, choice in lists.items():
        cut = {title: [position[place] for place in row if place in position] for title, row in choice.items()}
        if any(cut.values()):
            titled = [{"title": title, "images": row} for title, row in cut.items() if row]
            shown.append({"name": name, "rows": titled})
    return shown, kept, len(wanted) - len(kept)


def _stacked(name: str, images: Sequence[PageImage]) -> np.ndarray:
    arrays = [getattr(image, name) for image in images]
    if len(shapes := {np.shape(array) for array in arrays}) > 1:
        raise UserError(f"`{name}` must have one shape for all images, got {sorted(shapes)}; pass images of one size.")
    return np.stack(arrays)


def _image(image: PageImage) -> dict[str, Any]:
    pictures = {name: _data_uri(getattr(image, name)) for name in ("original", "reconstruction")}
    return {"caption": image.caption, "values": image.values, **pictures}


def _data_uri(pixels: UInt8[np.ndarray, "height width channels"]) -> str:
    file = io.BytesIO()
    Image.fromarray(to_rgb(pixels)).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _laid_out(
    indices: Int[np.ndarray, "images ..."], aspect: float, num_codebooks: int
) -> tuple[dict[str, Any], list[list[list[int]]]]:
    """How tokens lie on an image of this height over width, and the tokens of each image by stage."""
    grid = _token_axes(indices.shape[1:], num_codebooks)
    tokens = indices.reshape(len(indices), math.prod(grid), -1)
    rows, columns, on_image = _rows_and_columns(grid, aspect)
    layout = {
        "rows": rows,
        "columns": columns,
        "on_image": on_image,
        "flat": len(grid) == 1,
        "stages": [f"stage {stage}" for stage in range(tokens.shape[2])],
    }
    return layout, tokens.transpose(0, 2, 1).tolist()


def _token_axes(shape: tuple[int, ...], num_codebooks: int) -> tuple[int, ...]:
    """The shape of an image's indices without the axes of stages and groups."""
    if num_codebooks > 1:
        for axes in range(1, len(shape) + 1):
            if math.prod(shape[axes:]) == num_codebooks:
                return shape[:axes]
    # Stages may share one codebook.
    return shape[:2]


def _rows_and_columns(grid: tuple[int, ...], aspect: float) -> tuple[int, int, bool]:
    """How the tokens are laid out, and whether over the image; flat ones only if they are a grid of its proportions."""
    if len(grid) == 2:
        return *grid, True
    count = math.prod(grid)
    rows = max(1, round(math.sqrt(count * aspect)))
    columns = round(rows / aspect)
    if rows * columns == count and math.isclose(rows, columns * aspect):
        return rows, columns, True
    columns = min(count, math.ceil(math.sqrt(2 * count)))
    return math.ceil(count / columns), columns, False


def _tiles(table: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Names and values of the numbers that readers look for first."""
    numbers = {name: value for name, value, *_ in table[1:] if value != "n/a"}
    # Of the numbers with several protocols, such as rfid_val and rfid_train, the first.
    found = (next((name for name in numbers if re.fullmatch(f"{start}(_.*)?", name)), None) for start in _HEADLINES)
    return [(name, numbers[name]) for name in [name for name in found if name is not None][:_TILES]]


def _table(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    heading = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    return f"<table><thead><tr>{heading}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def _footer(kept: int, left_out: int, num_codes: int) -> str:
    sentences = ["This page has no pictures."]
    if kept > 0:
        more = f", and leaves out {left_out} more" if left_out else ""
        limit = f"at most {MOST_IMAGES} images, or {MOST_PIXELS:,} pixels of them"
        sentences = [f"This page holds {kept} images of the split{more}: {limit}."]
    if num_codes > MOST_CODES:
        sentences.append(f"There is no histogram of {num_codes:,} codes: at most {MOST_CODES:,}.")
    return " ".join([*sentences, "It needs no network."])


def _text(value: Any) -> str:
    return html.escape(str(value))


@functools.cache
def _template() -> str:
    return resources.files("vqjax.evaluation").joinpath("page.html").read_text(encoding="utf-8")


def _policy() -> str:
    """Only what is on the page may run or be shown: its own script and style, and images within it."""
    digests = {}
    for name in ("style", "script"):
        content = re.search(rf"<{name}>(.*?)</{name}>", _template(), re.DOTALL)[1]
        digests[name] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    sources = "".join(f"; {name}-src 'sha256-{digest}'" for name, digest in digests.items())
    return f"default-src 'none'; img-src data:{sources}; base-uri 'none'; form-action 'none'"


def _filled(parts: Mapping[str, str]) -> str:
    # In one pass, so that nothing in a part is taken for the place of another.
    parts = {"policy": _policy(), **parts}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _template())
