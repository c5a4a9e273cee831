"""A photograph through a tokenizer."""

import numpy as np
import pytest
from PIL import Image

from vqjax import Tokenizer, load_tokenizer
from vqjax.errors import UserError
from vqjax.training.reconstruct import reconstruct_image
from vqjax.training.share import share_tokenizer


@pytest.fixture
def photograph(tmp_path):
    """A JPEG of 100 x 50 pixels that its camera's tag turns upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 10, 3), np.uint8)
    file, exif = tmp_path / "photograph.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((100, 50)).save(file, exif=exif)
    return file


def test_a_run_and_its_shared_tokenizer_keep_the_same_of_a_photograph(finished, photograph, tmp_path, capsys):
    share_tokenizer(workdir=finished, out=tmp_path / "shared")
    for name, tokenizer in (("run", finished), ("shared", tmp_path / "shared")):
        reconstruct_image(photograph, tokenizer=str(tokenizer), out=tmp_path / f"{name}.png", size=64)
    tokens = [np.load(tmp_path / f"{name}.npy") for name in ("run", "shared")]
    np.testing.assert_array_equal(*tokens)
    assert (tmp_path / "run.png").read_bytes() == (tmp_path / "shared.png").read_bytes()
    # Upright, and 64 x 32 pixels.
    height, width = load_tokenizer(finished).decode(tokens[0][None]).shape[1:3]
    assert (height, width) == (64, 32)
    printed = capsys.readouterr().out
    codes = load_tokenizer(finished).model.quantizer.num_codes
    assert f"32 x 64 pixels, {tokens[0].shape[0]} x {tokens[0].shape[1]} tokens of {codes} codes: " in printed
    assert f"{int(np.ceil(tokens[0].size * np.log2(codes) / 8))} bytes instead of 6,144" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "--size must be from 32 to 4096 pixels, got 8"),
        ({"out": "picture.jpg"}, "--out must end in .png, got 'picture.jpg'"),
        ({"tokenizer": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_wrong_arguments_are_named(finished, photograph, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        reconstruct_image(photograph, **{"tokenizer": str(finished), "out": tmp_path / "out.png"} | arguments)


def test_the_photograph_is_not_written_over_and_a_fixed_size_is_named(finished, photograph, tmp_path, monkeypatch):
    (tmp_path / "o.png").write_bytes(photograph.read_bytes())
    with pytest.raises(UserError, match="--out must be another file than the photograph"):
        reconstruct_image(tmp_path / "o.png", tokenizer=str(finished), out=tmp_path / "o.png")
    # As that of a quantizer whose scales have a fixed grid.
    monkeypatch.setattr(Tokenizer, "decode", lambda self, indices: np.zeros((1, 48, 48, 3), np.float32))
    with pytest.raises(UserError, match="got 32 x 64, of which it makes 48 x 48; pass --size=48"):
        reconstruct_image(photograph, tokenizer=str(finished), out=tmp_path / "out.png", size=64)


def test_a_tokenizer_is_found_by_its_address_and_by_home(finished, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.parent))
    share_tokenizer(workdir=finished, out=tmp_path / "shared")
    for tokenizer in (f"~/{finished.name}", f"file://{finished}", f"file://{tmp_path}/shared"):
        reconstruct_image(photograph, tokenizer=tokenizer, out=tmp_path / "out.png", size=32)
    monkeypatch.chdir(finished.parent)
    with pytest.raises(UserError, match="name must be a directory, got 'run/nothere', which is not in 'run'"):
        reconstruct_image(photograph, tokenizer=f"{finished.name}/nothere", out=tmp_path / "out.png")


def test_what_is_no_photograph_is_named(finished, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=f"IMAGE must be a photograph, got .*{name}: "):
            reconstruct_image(tmp_path / name, tokenizer=str(finished), out=tmp_path / "out.png")
