"""The page of an evaluation holds what it shows, within its limits, and nothing on it is taken for code."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vqjax.errors import UserError
from vqjax.evaluation import EvaluationResult, write_page, write_report
from vqjax.evaluation.page import MOST_IMAGES, MOST_PIXELS, PageImage, page

HOSTILE = '</script><b>"&amp;{{data}}\u2028'
TABLE = [("metric", "value", "protocol"), ("images", "2", "images of the split"), ("psnr", "23.5", HOSTILE)]


class Parsed(HTMLParser):
    """The tags of a page, with the text in each."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.links = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        tag = "".join(self.tags[-1:])
        self.text[tag] = self.text.get(tag, "") + data


def image(number=0, size=(8, 8), indices=None, channels=3):
    pixels = np.random.default_rng(number).integers(0, 256, (2, *size, channels), np.uint8)
    return PageImage(*pixels, f"{number}: {HOSTILE}", {"psnr": 20.0 + number, HOSTILE: float("nan")}, indices)


def content(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def build(images, lists=None, **more):
    return page(
        HOSTILE, {HOSTILE: HOSTILE}, TABLE, images=images, lists=lists or {"all": {"": range(len(images))}}, **more
    )


def test_images_are_on_the_page_bit_for_bit():
    images = [image(0), image(1)]
    for shown, given in zip(content(build(images))["images"], images, strict=True):
        for kind in ("original", "reconstruction"):
            png = base64.b64decode(shown[kind].removeprefix("data:image/png;base64,"))
            np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), getattr(given, kind))


def test_text_of_others_is_never_taken_for_tags():
    """Names of classes, files and data sets may hold anything."""
    plain = page("a", {"a": "b"}, [TABLE[0], TABLE[1], ("psnr", "23.5", "c")], images=[image()], lists={"a": {"": [0]}})
    text = build([image()], {HOSTILE: {HOSTILE: [0]}})
    assert Parsed(text).tags == Parsed(plain).tags
    assert [Parsed(text).text[tag].strip("\n ") for tag in ("title", "h1")] == [HOSTILE, HOSTILE]
    shown = content(text)
    assert shown["lists"] == [{"name": HOSTILE, "rows": [{"title": HOSTILE, "images": [0]}]}]
    assert shown["images"][0]["caption"] == f"0: {HOSTILE}"
    assert shown["images"][0]["values"] == {"psnr": 20.0, HOSTILE: None}


def test_only_the_script_and_style_of_the_page_may_run_and_nothing_be_loaded():
    text = build([image()])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].split("; ")
    assert policy[:2] == ["default-src 'none'", "img-src data:"]
    for name in ("style", "script"):
        digest = hashlib.sha256(re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)[1].encode()).digest()
        assert f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert Parsed(text).links == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|<[a-z]+[^>]* (on\w+|style)=", text)


def test_the_first_of_every_list_come_before_the_second_of_any():
    lists = {str(name): {"best": range(name * 20, name * 20 + 20)} for name in range(4)}
    shown = content(text := build([image(number) for number in range(80)], lists))
    captions = {int(shown_image["caption"].partition(":")[0]) for shown_image in shown["images"]}
    assert captions == {name * 20 + rank for name in range(4) for rank in range(MOST_IMAGES // 4)}
    for name, choice in enumerate(shown["lists"]):
        kept = [shown["images"][place]["caption"] for place in choice["rows"][0]["images"]]
        assert kept == [f"{name * 20 + rank}: {HOSTILE}" for rank in range(MOST_IMAGES // 4)]
    assert "holds 40 images of the split, and leaves out 40 more" in text


def test_an_image_in_several_lists_is_there_once():
    shown = content(build([image(0), image(1)], {"a": {"best": [1], "worst": [0]}, "b": {"best": [1, 0]}}))
    assert len(shown["images"]) == 2
    assert [row["images"] for choice in shown["lists"] for row in choice["rows"]] == [[0], [1], [0, 1]]


@pytest.mark.parametrize(("size", "kept"), [(256, 5), (512, 4), (1200, 1)])
def test_large_images_are_fewer(size, kept):
    blank = np.zeros([size, size, 3], np.uint8)
    images = [PageImage(blank, blank, str(number), {}) for number in range(5)]
    assert len(content(build(images))["images"]) == kept
    assert kept == min(5, max(1, MOST_PIXELS // size**2))


@pytest.mark.parametrize(
    ("shape", "codebooks", "rows", "columns", "stages", "on_image"),
    [
        ((4, 2), 1, 4, 2, 1, True),
        ((4, 2, 3), 3, 4, 2, 3, True),
        ((4, 2, 3), 1, 4, 2, 3, True),  # stages that share a codebook
        ((4, 2, 2, 3), 6, 4, 2, 6, True),  # groups of stages
        ((8,), 1, 4, 2, 1, True),  # flat, of the image's proportions
        ((8, 2), 2, 4, 2, 2, True),
        ((8, 2), 0, 8, 2, 1, True),
        ((21,), 1, 3, 7, 1, False),  # of no grid
        ((1,), 1, 1, 1, 1, False),
    ],
)
def test_tokens_lie_where_their_patches_are(shape, codebooks, rows, columns, stages, on_image):
    indices = np.arange(np.prod(shape)).reshape(shape)
    counts = [np.ones(64, np.int64)] * codebooks
    shown = content(build([image(size=(16, 8), indices=indices)], code_counts=counts))
    layout = shown["tokens"]
    assert (layout["rows"], layout["columns"], layout["on_image"]) == (rows, columns, on_image)
    assert len(layout["stages"]) == len(shown["images"][0]["tokens"]) == stages
    # Row by row, and each stage by itself.
    assert shown["images"][0]["tokens"] == indices.reshape(-1, stages).T.tolist()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_channels_are_shown_as_sheets_show_them(channels):
    given = image(channels=channels)
    png = base64.b64decode(content(build([given]))["images"][0]["original"].partition(",")[2])
    shown = np.array(Image.open(io.BytesIO(png))).astype(float)
    expected = given.original.astype(float)
    if channels == 4:
        expected = expected[..., :3] * expected[..., 3:] / 255 + 255 - expected[..., 3:]
    np.testing.assert_allclose(shown, np.broadcast_to(expected, shown.shape), atol=0.51)


def test_more_codes_than_a_screen_can_show_have_no_histogram(monkeypatch):
    """The 2**36 codes of a binary quantizer would be a page of gigabytes."""
    monkeypatch.setattr("vqjax.evaluation.page.MOST_CODES", 16)
    counts = [np.zeros(8, np.int64)] * 2
    assert len(content(build([], code_counts=counts))["codebooks"]) == 2
    text = build([image(indices=np.zeros((2, 2, 3), int))], code_counts=[*counts, np.zeros(1, np.int64)])
    assert content(text)["codebooks"] == []
    assert len(content(text)["images"][0]["tokens"]) == 3
    assert "no histogram of 17 codes: at most 16." in text


def test_a_page_without_pictures_or_codes_has_the_table():
    text = build([])
    assert "no pictures" in text
    assert content(text)["images"] == content(text)["codebooks"] == content(text)["lists"] == []
    assert "<td>images of the split</td>" in text


def test_images_of_different_sizes_are_rejected(as_users_run_it):
    with pytest.raises(
        UserError, match=r"^`original` must have one shape for all images, got .*; pass images of one size"
    ):
        build([image(0), image(1, size=(8, 4))])
    with pytest.raises(UserError, match=r"^`reconstructions` must have the shape of the originals"):
        build([PageImage(np.zeros([8, 8, 3], np.uint8), np.zeros([8, 4, 3], np.uint8), "", {})])
    with pytest.raises(UserError, match="must be uint8"):
        build([PageImage(np.zeros([8, 8, 3]), np.zeros([8, 8, 3]), "", {})])


def test_a_report_removes_the_page_of_an_earlier_evaluation(tmp_path):
    """Numbers of two checkpoints would stand side by side."""
    result = EvaluationResult({"images": 1}, {"images": "images of the split"}, {})
    write_page(tmp_path, result, context={"dataset": "a"}, caption=lambda index, label: "")
    write_report(tmp_path, result, context={}, pictures={})
    assert not (tmp_path / "report.html").exists()


def test_names_that_are_not_text_are_written_in_escapes(tmp_path):
    """Bug in file names: Linux takes any bytes."""
    result = EvaluationResult({"images": 1}, {"images": "images of the split"}, {})
    write_page(tmp_path, result, context={"dataset": "b\udcffd"}, caption=lambda index, label: "")
    assert "b\\udcffd" in (tmp_path / "report.html").read_text()
