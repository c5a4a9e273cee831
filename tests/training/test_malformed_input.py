"""Whatever is wrong with a config, an image, an array or a token file: one clear line, or a counted skip."""

import contextlib
import copy
import io
import os
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vqjax.data import ImageDataset, UnreadableImage, fingerprint, load_splits, materialize
from vqjax.data.arrays import ArrayDataset
from vqjax.data.batches import hold_out
from vqjax.data.clips import ClipPlan
from vqjax.data.folder_splits import some_of
from vqjax.data.images import decode_image
from vqjax.data.tokens import TokenDataset
from vqjax.data.video_arrays import VideoArray
from vqjax.errors import UserError
from vqjax.evaluation import load_tokens, save_tokens
from vqjax.functional.tokens import TokenInfo
from vqjax.quantizers.recipes import RECIPES
from vqjax.runtime.signature import Call
from vqjax.training.build import build_task, check_fits, example_batch
from vqjax.training.config import GROUPS, Run, base_config, validate
from vqjax.training.loop import train

SIDE = 8
SEED = 0

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def refusal(function: Callable[[], Any]) -> str | None:
    """The one line in which it refuses, or None; raises whatever else it raises."""
    try:
        function()
    except UserError as error:
        message = str(error)
        assert message.strip() == message, message
        assert "\n" not in message, message
        assert 20 < len(message) < 1500, message
        return message
    return None


def ends_well(function: Callable[[], Any]) -> bool:
    """Whether it refuses in one line; raises whatever else it raises."""
    return refusal(function) is not None


def damaged(content: bytes, number: int) -> Iterator[bytes]:
    """Cut short, with wrong bytes, with bytes put in and taken out."""
    chance = random.Random(SEED)
    for i in range(number):
        spoiled, place = bytearray(content), chance.randrange(len(content))
        match i % 4:
            case 0:
                del spoiled[place:]
            case 1:
                for _ in range(chance.choice([1, 1, 8])):
                    spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
            case 2:
                spoiled[place:place] = chance.randbytes(chance.randrange(1, 40))
            case 3:
                del spoiled[place : place + chance.randrange(1, 40)]
        yield bytes(spoiled)


# Configs

WRONG: dict[type, list[Any]] = {
    int: [-1, 2.5, "many", True, [1], float("nan"), 10**30, None],
    float: [-1.0, "much", float("nan"), float("-inf"), [0.5], True, None],
    bool: ["maybe", 2, None, [True]],
    str: ["nonsense", 3, ["euclidean"], None],
    tuple: [3, "8, 5", (2.5, 3), (), (-1,), None],
}
# Wrong for most fields of their type, but right for these.
RIGHT: dict[str, list[Any]] = {"model.attention_resolutions": [()]}
WRONG_PARTS = [3, "nonsense", [1], {"name": "nonsense"}, {"nonsense": 1}]
FREE_TEXT = {"data.name", "data.train_split", "data.eval_split", "data.feature"}

# Arguments without which a choice cannot run.
GIVEN = {"sum": {"l1": 1.0}}

# Groups that a choice of another group needs, in a small size.
_CLASSIFIER = {
    "task": {"name": "classification"},
    "model": {"name": "resnet18", "width": 4},
    "loss": {"name": "cross_entropy"},
    "quantizer": {"stage_2": {"name": "vq", "num_codes": 16}},
}
_VIDEO = {
    "data": {"source": "panning_photos", "image_size": 8, "frames": 5},
    "model": {"name": "causal_video", "channels": 32, "multipliers": (1, 1), "num_res_blocks": 1, "latent_dim": 8},
}
_TOKENS = {"data": {"source": "tokens", "name": "tokens"}, "quantizer": {}, "loss": None}
_CAUSAL = _TOKENS | {"model": {"name": "causal_transformer", "dim": 16}, "task": {"name": "autoregressive"}}
_MASKED = _TOKENS | {"model": {"name": "masked_transformer", "dim": 16}, "task": {"name": "masked_tokens"}}
for _config in (_CAUSAL, _MASKED):
    _config["model"] |= {"depth": 1, "heads": 2}
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("task", "classification"): _CLASSIFIER,
    ("loss", "cross_entropy"): _CLASSIFIER,
    ("model", "resnet18"): _CLASSIFIER,
    ("model", "alexnet"): _CLASSIFIER | {"quantizer": {}},
    ("model", "vit"): _CLASSIFIER | {"quantizer": {}},
    ("task", "autoregressive"): _CAUSAL,
    ("model", "causal_transformer"): _CAUSAL,
    ("data", "tokens"): _CAUSAL,
    ("task", "masked_tokens"): _MASKED,
    ("model", "masked_transformer"): _MASKED,
    ("model", "causal_video"): _VIDEO,
    ("model", "timesformer"): _VIDEO,
    **{("data", source): _VIDEO for source in GROUPS["data"] if "frames" in GROUPS["data"].call(source).fields},
    ("task", "alternating"): {
        "quantizer": {"name": "vq", "num_codes": 16, "codebook": {"name": "gradient", "weight": 0.0}}
    },
    ("task", "vqgan"): {
        "model": {"name": "vqgan", "channels": 32, "multipliers": (1, 1), "num_res_blocks": 1, "latent_dim": 8}
    },
}


def valid_config() -> dict[str, Any]:
    config = base_config()
    config.num_steps, config.batch_size = 10, 4
    config.model.width = 8
    return config.to_dict()


def choices() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice in every group of a config."""
    yield from (("quantizer", dict(recipe)) for recipe in RECIPES.values())
    for source in GROUPS["data"]:
        options = GROUPS["data"].defaults(source)
        # A file, a directory or a dataset of that name is what the tests of images below are about.
        yield "data", options | {name: source for name in options.keys() & {"name"}}
    for group in ("task", "model", "loss", "optimizer"):
        # Other tests may have put choices of their own among those of the package.
        names = [name for name, function in GROUPS[group].items() if function.__module__.startswith("vqjax.")]
        # Next-scale prediction takes the run of a tokenizer: test_generation.py.
        names = [name for name in names if not name.startswith("next_scale")]
        yield from ((group, GROUPS[group].defaults(name, **GIVEN.get(name, {}))) for name in names)
    yield "task", GROUPS["task"].defaults("vqgan", discriminator={"name": "stylegan", "channels": (8, 8, 16, 16)})


def config_of(group: str, options: dict[str, Any]) -> dict[str, Any]:
    """A config that can run with a choice of a group, if the choice is right."""
    return valid_config() | NEEDS.get((group, options[GROUPS[group].key]), {}) | {group: options}


def wrong_values(call: Call, config: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Wrong values of the fields of a group and of its parts, with the dotted names of the fields."""
    for name, field in call.fields.items():
        path = f"{prefix}{name}"
        if field.part is not None:
            yield from ((path, value) for value in WRONG_PARTS)
            if config.get(name) and not field.several:
                yield from wrong_values(field.part.call(config[name]["name"]), config[name], f"{path}.")
            continue
        kind = next((kind for kind in WRONG if kind in field.kind.types), str)
        for value in WRONG[kind]:
            may_be_that = (path in FREE_TEXT and isinstance(value, str)) or (value is None and field.can_be_off)
            if not may_be_that and value not in RIGHT.get(path, []):
                yield path, value


def wrong_configs() -> Iterator[tuple[dict[str, Any], str, Any]]:
    """A config that could run, the dotted name of one field, and a wrong value for it."""
    config = valid_config()
    yield from ((config, name, value) for name, value in wrong_values(Call(Run, GROUPS), {}, ""))
    for group, options in choices():
        call, config = GROUPS[group].call(options[GROUPS[group].key]), config_of(group, options)
        yield from ((config, name, value) for name, value in wrong_values(call, options, f"{group}."))


def data_of(config: ConfigDict) -> ImageDataset:
    labels = np.zeros(2, np.int32)
    if config.data.source == "tokens":
        return TokenDataset("zero", [(np.zeros((2, 2, 2), np.uint8), labels)], TokenInfo((16,), (2, 2), 1), ("all",))
    side = config.data.image_size
    if "frames" in config.data:
        plan = ClipPlan(config.data.frames, config.data.frame_stride)
        return VideoArray("black", np.zeros((2, plan.span, side, side, 3), np.uint8), side, plan, labels=labels)
    return ArrayDataset("black", np.zeros((2, side, side, 3), np.uint8), image_size=side, labels=labels)


def start_of(config: Any) -> None:
    """The checks of a run before it writes anything; black images stand for those of the sources."""
    config = validate(config)
    images = data_of(config)
    if "eval_fraction" in config.data:
        hold_out(2, config.data.eval_fraction, name="black")
    if config.data.get("train_images") is not None:
        some_of(range(2), config.data.train_images)
    task = build_task(config, images)
    check_fits(task, jax.random.key(0), example_batch(images))


@pytest.mark.parametrize(("group", "options"), list(choices()), ids=lambda value: str(value)[:40])
def test_every_choice_of_every_group_can_run(group, options):
    start_of(ConfigDict(config_of(group, options)))


@pytest.mark.parametrize(("config", "name", "value"), list(wrong_configs()), ids=lambda value: str(value)[:30])
def test_a_wrong_value_in_a_config_file_is_refused(config, name, value):
    fields = copy.deepcopy(config)
    *groups, field = name.split(".")
    group = fields
    for part in groups:
        group = group[part]
    group[field] = value
    message = refusal(lambda: start_of(ConfigDict(fields)))
    # Not for another reason, which would hide that this value is taken.
    assert message is not None
    assert field in message, message


NO_CONFIGS = [None, 3, "config", {}, ConfigDict(), ConfigDict({"data": 1}), ConfigDict({"seed": 0})]


@pytest.mark.parametrize("config", NO_CONFIGS)
def test_what_is_no_config_is_refused(config, tmp_path):
    assert ends_well(lambda: train(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Images


def encoded(extension: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(content, extension, **options)
    return content.getvalue()


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"]
DAMAGED_IMAGES, DAMAGED_ARRAYS, DAMAGED_TOKENS = 60, 60, 80


@pytest.mark.parametrize("extension", FORMATS)
def test_a_damaged_image_is_read_or_skipped(extension):
    intact = encoded(extension)
    decoded = [decode_image(io.BytesIO(intact), SIDE, path="picture")]
    for content in damaged(intact, DAMAGED_IMAGES):
        with contextlib.suppress(UnreadableImage):
            decoded.append(decode_image(io.BytesIO(content), SIDE, path="picture"))
    assert {(image.shape, image.dtype) for image in decoded} == {((SIDE, SIDE, 3), np.dtype(np.uint8))}


def odd_files(directory: Path) -> dict[str, bool]:
    """Writes files, and says which of them are pictures."""
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(deep, "PNG")
    wide = encoded("PNG").replace((20).to_bytes(4) + (24).to_bytes(4), (2**31 - 1).to_bytes(4) * 2)
    contents = {
        "cmyk.jpg": (encoded("JPEG", "CMYK"), True),
        "gray.png": (encoded("PNG", "L"), True),
        "bits.png": (encoded("PNG", "1"), True),
        "palette.png": (encoded("PNG", "P"), True),
        "animated.png": (animation.getvalue(), True),
        "deep.png": (deep.getvalue(), True),
        "wrong_extension.jpg": (encoded("PNG"), True),
        "new\nline.png": (encoded("PNG"), True),
        "zero.png": (b"", False),
        "text.png": (b"not a picture", False),
        "huge.png": (wide, False),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),
        "cut.webp": (encoded("WEBP")[:40], False),
    }
    for name, (content, _) in contents.items():
        (directory / name).write_bytes(content)
    (directory / os.fsdecode(b"no \xff text.png")).write_bytes(b"not a picture")
    (directory / "loop").symlink_to(directory)
    (directory / "itself.png").symlink_to(directory / "itself.png")
    (directory / "nowhere.png").symlink_to(directory / "is_not_there.png")
    (directory / "directory.png").mkdir()
    os.mkfifo(directory / "pipe.png")
    return {name: is_picture for name, (_, is_picture) in contents.items()}


def test_odd_files_of_a_folder_are_read_or_named(tmp_path, caplog):
    """Bug: a named pipe was opened as a picture, and the run waited for ever for somebody to write into it."""
    is_picture = odd_files(tmp_path)
    data = ConfigDict({"source": "image_folder", "name": str(tmp_path), "image_size": SIDE, "train_split": ""})
    splits = load_splits(data)
    assert sum(len(materialize(split)["image"]) for split in splits) == sum(is_picture.values())
    assert "skipped 9 unreadable images of 17" in caplog.text
    for split in splits:
        assert fingerprint(split)


# Arrays


def array_files(directory: Path) -> Iterator[Path]:
    good = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
    arrays = [
        *(
            good.astype(dtype)
            for dtype in ("float32", "float64", "int8", "int16", "int64", "uint16", "bool", "complex64")
        ),
        *(good.astype(dtype) for dtype in ("S3", "U3", "datetime64[s]", "timedelta64[s]")),
        np.full(good.shape, np.nan),
        np.array([good, None], object),
        np.array(["a" * 100] * 3, object),
        np.zeros(4, [("pixels", "u1", 3)]),
        good[0, 0, 0, 0],
        good[0, 0, 0],
        good[0, 0],
        good[:, :, :, :2],
        good[:, None],
        good[:0],
        good[:, :0],
        good[..., :0],
        np.concatenate([good, good], -1),
        good[:1],
        good.view(np.dtype("V1")),
    ]
    for number, array in enumerate(arrays):
        for extension, save in ((".npy", np.save), (".npz", np.savez)):
            path = directory / f"array{number}{extension}"
            save(path, array, allow_pickle=True)
            yield path
    np.savez(directory / "three.npz", good, good, good)
    np.savez(directory / "one_split.npz", train=good, tets=good)
    np.savez(directory / "mixed.npz", train=good, test=good.astype(float))
    with zipfile.ZipFile(directory / "text.npz", "w") as archive:
        archive.writestr("train.npy", "not an array")
    with zipfile.ZipFile(directory / "empty.npz", "w"):
        pass
    (directory / "empty.npy").write_bytes(b"")
    (directory / "directory.npy").mkdir()
    (directory / "itself.npz").symlink_to(directory / "itself.npz")
    header = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
    shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 9999, 9999, 3), }"
    (directory / "claims.npy").write_bytes(header + shape.ljust(117) + b"\n")
    with zipfile.ZipFile(directory / "claims.npz", "w") as archive:
        archive.write(directory / "claims.npy", "images.npy")
    os.mkfifo(directory / "pipe.npy")
    for name in ("three.npz", "one_split.npz", "mixed.npz", "text.npz", "empty.npz", "empty.npy", "directory.npy"):
        yield directory / name
    for name in (
        "itself.npz",
        "claims.npy",
        "claims.npz",
        "pipe.npy",
        "is_not_there.npy",
        "is_not_there.npz",
        "other.txt",
    ):
        yield directory / name


def load_arrays(path: Path) -> None:
    data = ConfigDict({"source": "arrays", "name": str(path), "image_size": SIDE})
    for split in load_splits(data):
        images = materialize(split)["image"]
        assert images.shape[1:] == (SIDE, SIDE, 3)


def test_an_array_that_is_no_images_is_refused(tmp_path):
    for path in array_files(tmp_path):
        assert ends_well(lambda path=path: load_arrays(path)), path


@pytest.mark.parametrize("extension", [".npy", ".npz"])
def test_a_damaged_array_file_is_refused_unless_only_its_pixels_changed(tmp_path, extension):
    path = tmp_path / f"images{extension}"
    good = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
    (np.save if extension == ".npy" else np.savez_compressed)(path, good)
    content = path.read_bytes()
    refused = 0
    for spoiled in damaged(content, DAMAGED_ARRAYS):
        path.write_bytes(spoiled)
        refused += ends_well(lambda: load_arrays(path))
    assert refused >= 15


# Token files


def test_a_damaged_token_file_is_refused_or_as_it_was(tmp_path):
    path, indices = tmp_path / "tokens.npz", np.arange(48).reshape(3, 4, 4)
    save_tokens(path, indices, num_codes=64, context={"split": "test"})
    for spoiled in damaged(path.read_bytes(), DAMAGED_TOKENS):
        path.write_bytes(spoiled)
        if not ends_well(lambda: load_tokens(path)):
            # Damage to what nothing reads, such as a date.
            np.testing.assert_array_equal(load_tokens(path).indices, indices)


OTHER_TOKENS = [
    {"indices": np.array([[[64]]])},
    {"indices": np.array([[[-1]]])},
    {"indices": np.array([[[0.5]]])},
    {"indices": np.array([[[np.nan]]])},
    {"indices": np.array([[["a"]]])},
    {"indices": np.array([[None]], object)},
    {"indices": np.array(3)},
    {"num_codes": np.array(0)},
    {"num_codes": np.array(-5)},
    {"num_codes": np.array(2.5)},
    {"num_codes": np.array([64, 64])},
    {"num_codes": np.array("many")},
    {"num_codes": np.array(None, object)},
    {"context": np.array("{")},
    {"context": np.array("[1]")},
    {"context": np.array(3)},
    {"context": np.array({"split": "test"}, object)},
    {"indices": None},
    {"num_codes": None},
    {"context": None},
]


@pytest.mark.parametrize("changed", OTHER_TOKENS, ids=lambda changed: repr(changed)[:40])
def test_a_token_file_with_other_content_is_refused(tmp_path, changed):
    content = {"indices": np.zeros((1, 2, 2), np.uint8), "num_codes": np.array(64), "context": np.array("{}")}
    content = {name: value for name, value in (content | changed).items() if value is not None}
    np.savez(tmp_path / "tokens.npz", allow_pickle=True, **content)
    assert ends_well(lambda: load_tokens(tmp_path / "tokens.npz"))


NO_TOKEN_FILES = ["is_not_there.npz", "directory.npz", "itself.npz", "zero.npz", "pipe.npz"]


@pytest.mark.parametrize("name", NO_TOKEN_FILES)
def test_what_is_no_token_file_is_refused(tmp_path, name):
    (tmp_path / "directory.npz").mkdir()
    (tmp_path / "itself.npz").symlink_to(tmp_path / "itself.npz")
    (tmp_path / "zero.npz").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.npz")
    assert ends_well(lambda: load_tokens(tmp_path / name))


def test_the_page_says_how_many_inputs_are_tried(tmp_path):
    for name in ("files", "arrays"):
        (tmp_path / name).mkdir()
    odd_files(tmp_path / "files")
    tried = len(list(wrong_configs())) + len(NO_CONFIGS) + len(list((tmp_path / "files").iterdir()))
    tried += len(FORMATS) * DAMAGED_IMAGES + len(list(array_files(tmp_path / "arrays"))) + 2 * DAMAGED_ARRAYS
    tried += DAMAGED_TOKENS + len(OTHER_TOKENS) + len(NO_TOKEN_FILES)
    page = (Path(__file__).parents[2] / "docs" / "long-runs.md").read_text()
    (said,) = re.findall(r"malformed .* \| all of ([\d,]+) \|", page)
    # More of them, such as those of a new field of a config, make it no less true.
    assert 0.95 * tried < int(said.replace(",", "")) <= tried, tried
