import io

import numpy as np
import pytest
from PIL import Image

from vqjax.data import UnreadableImage, images
from vqjax.data.images import check_header, decode_image, resize_and_center_crop


def encode(image, extension, **options):
    content = io.BytesIO()
    image.save(content, extension, **options)
    return content.getvalue()


def decode(content, size):
    return decode_image(io.BytesIO(content), size, path="picture")


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_an_image_of_the_right_size_comes_back_bit_for_bit():
    image = noise(8, 8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(image), "PNG"), 8), image)


def test_the_center_of_a_wide_image_is_kept_and_the_sides_are_cut():
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 200
    assert (decode(encode(Image.fromarray(image), "PNG"), 8) == 200).all()


def test_the_center_of_a_tall_image_is_kept():
    image = np.zeros((48, 16, 3), np.uint8)
    image[16:32] = 200
    result = decode(encode(Image.fromarray(image), "PNG"), 8)
    np.testing.assert_allclose(result, np.full((8, 8, 3), 200), atol=12)


def test_shrinking_averages_instead_of_picking_pixels():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB")
    result = resize_and_center_crop(image, 8)
    assert abs(result.astype(int) - 127).max() <= 2


def test_small_images_are_enlarged():
    assert decode(encode(Image.new("RGB", (3, 5), "red"), "PNG"), 16).shape == (16, 16, 3)


def test_a_jpeg_decoded_at_reduced_size_looks_like_the_full_one():
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), -1))
    result = decode(encode(image, "JPEG", quality=95), 16)
    wanted = resize_and_center_crop(image, 16)
    assert abs(result.astype(int) - wanted).max() <= 6


def test_a_photograph_that_lies_on_its_side_is_decoded_at_twice_the_size():
    """Bug: height and width were those of the upright image, and a narrow one was scaled up."""
    image, tag = Image.fromarray(noise(512, 128)), Image.Exif()
    tag[0x0112] = 6  # a quarter turn
    content = encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=tag.tobytes())
    small, whole = (
        decode_image(io.BytesIO(content), (16, 64), path="picture", shrinks=shrinks) for shrinks in (True, False)
    )
    assert small.shape == (16, 64, 3)
    assert np.abs(small.astype(float) - whole).mean() < 4


@pytest.mark.parametrize("extension", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_the_camera_is_honored(extension):
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    tag = Image.Exif()
    tag[0x0112] = 3  # rotated by half a turn
    result = decode(encode(Image.fromarray(image), extension, exif=tag.tobytes()), 16)
    assert result[:7].max() < 20
    assert result[9:].min() > 235


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    options = {}
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        options["transparency"] = image.getpixel((7, 0))
    result = decode(encode(image if mode == "P" else image.convert(mode), "PNG", **options), 8)
    assert result[0, 7].tolist() == [255, 255, 255]
    assert result[0, 0].tolist() != [255, 255, 255]


def test_a_transparent_color_of_an_rgb_png_becomes_white():
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    assert (decode(encode(image, "PNG", transparency=(10, 20, 30)), 8) == 255).all()


def test_palette_colors_are_looked_up():
    image = Image.new("RGB", (8, 8), (10, 20, 30)).quantize(2)
    assert decode(encode(image, "PNG"), 8)[0, 0].tolist() == [10, 20, 30]


def test_16_bit_grayscale_keeps_its_upper_bits_instead_of_saturating():
    levels = np.repeat(np.arange(8, dtype=np.uint16)[None] * 8192, 8, axis=0)
    result = decode(encode(Image.fromarray(levels), "PNG"), 8)
    assert result[0, :, 0].tolist() == [0, 32, 64, 96, 128, 160, 192, 224]
    assert (result == result[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.new("RGB", (8, 8), "white").convert(mode)
    result = decode(encode(image, "JPEG" if mode == "CMYK" else "PNG"), 8)
    assert result.min() >= 250


def broken_contents():
    image = Image.fromarray(noise(64, 64))
    return {
        "empty": b"",
        "text": b"this is not an image",
        "truncated JPEG": encode(image, "JPEG")[:800],
        "truncated PNG": encode(image, "PNG")[:800],
        "truncated WebP": encode(image, "WEBP")[:800],
        "corrupt": encode(image, "PNG").replace(b"IDAT", b"IDOT"),
    }


@pytest.mark.parametrize("content", broken_contents().values(), ids=broken_contents().keys())
def test_damaged_files_raise_one_exception_that_names_them(content):
    with pytest.raises(UnreadableImage, match=r"^picture: [^\n]+$"):
        decode(content, 8)


def test_a_decompression_bomb_is_found_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "bomb.png"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        check_header(path)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode_image(path, 8, path=path)


def test_formats_that_start_other_programs_are_not_opened():
    with pytest.raises(UnreadableImage):
        decode(encode(Image.new("RGB", (8, 8)), "EPS"), 8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_every_number_of_channels(mode, channels):
    image = Image.new("RGB", (12, 8), (204, 204, 204)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 12), 204 * 256, np.uint16))
    content = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    result = decode_image(io.BytesIO(content), (4, 6), path="picture", channels=channels)
    assert result.shape == (4, 6, channels)
    if mode != "1":
        np.testing.assert_allclose(result[..., :3], np.full((4, 6, min(channels, 3)), 204), atol=1)
    assert (result[..., 3:] == 255).all()


def test_the_center_is_kept_at_any_ratio_of_the_sides():
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 4:20] = 200
    assert (decode_image(io.BytesIO(encode(Image.fromarray(image), "PNG")), (8, 16), path="p") == 200).all()


def test_opacity_is_kept_where_there_are_four_channels():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert decode_image(io.BytesIO(encode(image, "PNG")), 8, path="p", channels=4)[0, 0].tolist() == [255, 0, 0, 0]


@pytest.mark.parametrize("pixels", [np.ones((8, 8), np.float32), np.full((8, 8), 2**20, np.int32)])
def test_pixels_without_a_range_are_refused(pixels):
    """Floats may end at 1 or at 255; Pillow's conversion takes the latter, which makes the former black."""
    with pytest.raises(UnreadableImage, match="have no known range"):
        decode(encode(Image.fromarray(pixels), "TIFF"), 8)


@pytest.mark.parametrize("extension", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_taken(extension):
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    content = encode(first, extension, save_all=True, append_images=[second])
    red, _, blue = decode(content, 8)[0, 0]
    assert red > 200 > 50 > blue


def test_a_build_of_pillow_without_a_format_reads_the_others(monkeypatch):
    """Pillow refuses every file when it is asked for a format that it lacks, as releases before 11.3 lack AVIF."""
    content = encode(Image.new("RGB", (8, 8)), "PNG")
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    images._formats.cache_clear()
    assert decode(content, 8).shape == (8, 8, 3)
    assert ".avif" not in images.image_suffixes()
    images._formats.cache_clear()
