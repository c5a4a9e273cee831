"""Sheets of originals above reconstructions."""

import numpy as np
import pytest
from PIL import Image

from vqjax.errors import UserError
from vqjax.reporting import comparison_sheet, save_png
from vqjax.reporting.pictures import clip_sheet


def photos(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, [count, height, width, 3], dtype=np.uint8)


@pytest.mark.parametrize(("count", "size"), [(16, 28), (16, 32), (16, 64), (16, 256), (5, 128), (9, 48)])
def test_sheets_are_comfortable_to_look_at(count, size):
    images = photos(count, size, size)
    assert 1000 <= comparison_sheet(images, images).shape[1] <= 1450


def test_every_pixel_is_there_unchanged():
    originals, reconstructions = photos(3, 5, 7, seed=1), photos(3, 5, 7, seed=2)
    sheet = comparison_sheet(originals, reconstructions, columns=2, scale=1)
    text = sheet.shape[1] - (2 * 7 + 2 + 8)
    assert (sheet[8:13, text : text + 7] == originals[0]).all()
    assert (sheet[15:20, text : text + 7] == reconstructions[0]).all()
    assert (sheet[8:13, text + 9 : text + 16] == originals[1]).all()
    assert (sheet[32:37, text : text + 7] == originals[2]).all()


def test_images_are_spread_evenly_over_the_rows():
    nine, ten = photos(9, 8, 8), photos(10, 8, 8)
    assert comparison_sheet(nine, nine).shape == comparison_sheet(ten, ten).shape


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "originals must have at least one image"),
        (1, {"columns": 0}, "columns must be at least 1, got 0"),
        (1, {"scale": 0}, "scale must be at least 1, got 0"),
    ],
)
def test_impossible_sheets_are_refused(count, options, message):
    images = photos(count, 8, 8)
    with pytest.raises(UserError, match=message):
        comparison_sheet(images, images, **options)


def test_png_keeps_the_pixels_and_replaces_an_older_file(tmp_path):
    for seed in (0, 1):
        save_png(tmp_path / "deep" / "sheet.png", photos(1, 4, 6, seed)[0])
    with Image.open(tmp_path / "deep" / "sheet.png") as image:
        assert (np.asarray(image) == photos(1, 4, 6, 1)[0]).all()
    assert len(list((tmp_path / "deep").iterdir())) == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_sheets_of_other_channels_show_gray_and_transparency(channels):
    images = np.full((2, 6, 10, channels), 100, np.uint8)
    if channels == 4:
        images[..., 3] = 0
    sheet = comparison_sheet(images, images, scale=1)
    assert sheet.shape[-1] == 3
    assert (sheet[8:14, -18:-8] == (100 if channels == 1 else 255)).all()


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("originals", "reconstructions", "message"),
    [
        (photos(2, 8, 8), photos(2, 8, 8) / 255, "`reconstructions` must be uint8 .* got float64"),
        (photos(2, 8, 8), photos(1, 8, 8), r"must have the shape of the originals, got \(1, 8, 8, 3\)"),
        (photos(2, 8, 8)[0], photos(2, 8, 8)[0], r"`originals` must be uint8 .* of shape \(8, 8, 3\)"),
        (photos(2, 8, 8)[..., :2], photos(2, 8, 8)[..., :2], r"`originals` must be uint8 .* of shape \(2, 8, 8, 2\)"),
    ],
)
def test_what_are_no_images_is_refused(originals, reconstructions, message):
    with pytest.raises(UserError, match=message):
        comparison_sheet(originals, reconstructions)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_picture_of_floats_is_refused(tmp_path):
    with pytest.raises(UserError, match="`image` must be uint8"):
        save_png(tmp_path / "sheet.png", np.zeros((4, 6, 3)))


def test_strips_of_one_frame_are_no_larger_than_pictures_of_images():
    """Bug: three clips of one small frame made a picture of 4,414 rows."""
    clips = photos(3, 8, 12)[:, None]
    assert clip_sheet(clips, clips).shape[0] < 1500
