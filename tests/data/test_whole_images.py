"""Images of their own sizes: each once, in order, with the pixels of other tools, or one line that says why not."""

import numpy as np
import pytest
from PIL import Image

from vqjax import UserError
from vqjax.data.whole_images import whole_images

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def test_every_image_of_a_directory_comes_once_in_order_with_the_pixels_of_pillow(tmp_path):
    """Of all formats and modes, from below the directory too; neither turned nor laid over white."""
    turned = Image.Exif()
    turned[0x0112] = 6
    saved = {
        "a/gray.png": (Image.fromarray(noise(5, 7)), {}),
        "a/transparent.png": (Image.fromarray(noise(9, 4, 4), "RGBA"), {}),
        "a.b/photo.JPG": (Image.fromarray(noise(16, 24, 3)), {"format": "JPEG", "exif": turned}),
        "palette.png": (Image.fromarray(noise(8, 8, 3)).quantize(4), {}),
        "z/cmyk.jpg": (Image.fromarray(noise(8, 8, 4), "CMYK"), {}),
        "z.webp": (Image.fromarray(noise(6, 10, 3)), {"lossless": True}),
    }
    for name, (image, options) in reversed(saved.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name, **options)
    (tmp_path / "notes.txt").write_text("no image")
    images = whole_images(tmp_path)
    assert len(images) == len(saved)
    for _ in range(2):
        for image, name in zip(images.read(), saved, strict=True):
            with Image.open(tmp_path / name) as stored:
                np.testing.assert_array_equal(image, np.asarray(stored.convert("RGB")), err_msg=name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_rows_of_a_file_of_samples_come_in_order(save, tmp_path):
    samples = noise(7, 4, 6, 3)
    save(tmp_path / "samples.npz", samples, np.arange(7))
    images = whole_images(tmp_path / "samples.npz")
    assert len(images) == 7
    for start in (0, 0, 5, 7):
        rest = list(images.read(start))
        np.testing.assert_array_equal(np.reshape(rest, (-1, 4, 6, 3)), samples[start:])


def test_other_images_have_another_fingerprint(tmp_path):
    prints = set()
    for number, images in enumerate([noise(3, 8, 8, 3), noise(3, 8, 8, 3)]):
        np.savez(tmp_path / f"{number}.npz", images)
        Image.fromarray(images[0]).save(tmp_path / "image.png")
        prints |= {whole_images(place).fingerprint for place in (tmp_path / f"{number}.npz", tmp_path)}
    assert len(prints) == 4
    assert whole_images(tmp_path).fingerprint in prints


def cut_png(place):
    Image.fromarray(noise(64, 64, 3)).save(place / "cut.png")
    (place / "cut.png").write_bytes((place / "cut.png").read_bytes()[:2000])


def deep_png(place):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(place / "deep.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_png, r"cut.png: .*truncated.*; replace or remove that file"),
        (deep_png, r"deep.png: its pixels of mode I;16 have more than 8 bits; replace"),
        (lambda place: (place / "empty.png").touch(), "empty.png: .*; replace or remove that file"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(spoil, message, tmp_path):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png")
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        list(whole_images(tmp_path).read())


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"float64 of shape \[2, 4, 4, 3\]"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"uint8 of shape \[2, 3, 4, 4\]"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"uint8 of shape \[0, 4, 4, 3\]"),
        ({"arr_0": np.array([None])}, r"object of shape \[1\]"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "no item named 'arr_0.npy'"),
    ],
)
def test_a_file_without_samples_is_refused(arrays, found, tmp_path):
    """One that would have to be executed, too."""
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(UserError, match=rf"--fake must be an .npz with uint8 arr_0 .*, got .*wrong.npz \(.*{found}"):
        whole_images(tmp_path / "wrong.npz", "--fake")


def test_a_cut_file_of_samples_is_refused(tmp_path):
    np.savez(tmp_path / "cut.npz", noise(50, 8, 8, 3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:4000])
    with pytest.raises(UserError, match=r"must be an .npz with .*, got .*cut.npz \(File is not a zip file\)"):
        whole_images(tmp_path / "cut.npz")


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"--real must be a directory of images, got .* without any file that ends in .png"
    ):
        whole_images(tmp_path, "--real")
    with pytest.raises(UserError, match=r"--real must be a directory of images or an .npz file, .*, which does not"):
        whole_images(tmp_path / "missing", "--real")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"got .*a.txt', another file\."):
        whole_images(tmp_path / "a.txt", "--real")
