"""Crops of papers, beside their computations written out in Pillow and NumPy; random ones depend on seed and step."""

import numpy as np
import pytest
from PIL import Image

from vqjax.data.arrays import ArrayDataset
from vqjax.data.crops import Crop
from vqjax.data.dataset import is_random
from vqjax.data.feeds import ResidentFeed, StreamedFeed, make_feed
from vqjax.data.image_folder import image_folder_splits
from vqjax.errors import UserError
from vqjax.training.build import build_task
from vqjax.training.config import base_config, validate

SIDE = 16
SHAPES = [(33, 49), (70, 40), (16, 16), (100, 131), (17, 40)]


def picture(height, width):
    """Smooth in places, and noise elsewhere."""
    rng = np.random.default_rng(height)
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3])
    noise = rng.integers(0, 256, (height, width, 3))
    return Image.fromarray(np.where(np.arange(width)[None, :, None] % 20 < 10, ramp % 256, noise).astype(np.uint8))


def middle(image, side=SIDE):
    array = np.asarray(image)
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


@pytest.mark.parametrize("shape", SHAPES)
def test_adm_halves_by_boxes_and_ends_bicubic(shape):
    image = expected = picture(*shape)
    while min(expected.size) >= 2 * SIDE:
        expected = expected.resize(tuple(side // 2 for side in expected.size), Image.BOX)
    scale = SIDE / min(expected.size)
    expected = expected.resize(tuple(round(side * scale) for side in expected.size), Image.BICUBIC)
    np.testing.assert_array_equal(Crop("adm")(image, SIDE), middle(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_is_resize_and_center_crop_of_torchvision(shape):
    image = picture(*shape)
    short, long = min(image.size), max(image.size)
    longer = int(SIDE * long / short)
    resized = image.resize((SIDE, longer) if image.width <= image.height else (longer, SIDE), Image.BILINEAR)
    left, top = (round((side - SIDE) / 2) for side in resized.size)
    expected = np.asarray(resized)[top : top + SIDE, left : left + SIDE]
    np.testing.assert_array_equal(Crop("bilinear")(image, SIDE), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_opencv_picks_pixels_instead_of_averaging(shape):
    """Bilinear at pixel centers, without antialiasing, in float64."""
    image = picture(*shape)
    pixels, scale = np.asarray(image, np.float64), SIDE / min(image.size)
    for axis in (0, 1):
        size = round(pixels.shape[axis] * scale)
        places = np.clip((np.arange(size) + 0.5) * pixels.shape[axis] / size - 0.5, 0, pixels.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        part = np.expand_dims(places - low, (1, 2) if axis == 0 else (0, 2))
        pixels = (1 - part) * pixels.take(low, axis) + part * pixels.take(high, axis)
    assert np.abs(Crop("opencv")(image, SIDE) - middle(pixels)).max() <= 1


def test_cut_keeps_pixels_and_surrounds_small_images_by_black():
    image = picture(33, 49)
    np.testing.assert_array_equal(Crop("cut")(image, SIDE), np.asarray(image)[8:24, 16:32])
    small = Crop("cut")(picture(11, 9), SIDE)
    np.testing.assert_array_equal(small[2:13, 3:12], np.asarray(picture(11, 9)))
    assert small.sum() == np.asarray(picture(11, 9)).sum()


def test_squash_changes_the_ratio_of_the_sides():
    image = picture(33, 49)
    np.testing.assert_array_equal(Crop("squash")(image, (8, 16)), image.resize((16, 8), Image.BILINEAR))
    # A window keeps it.
    taken = [Crop(center, "window")(image, 16, np.random.default_rng(0)) for center in ("squash", "bilinear")]
    np.testing.assert_array_equal(*taken)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("center", ["lanczos", "bilinear", "opencv", "adm", "cut"])
def test_a_window_lies_in_the_image_that_the_center_is_cut_of(center, shape):
    image, crop = picture(*shape), Crop(center, "window")
    whole = np.asarray(crop._scaled(image, SIDE, SIDE))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (SIDE, SIDE), (0, 1))
    places = set()
    for seed in range(8):
        taken = crop(image, SIDE, np.random.default_rng(seed)).transpose(2, 0, 1)
        (place,) = np.argwhere((windows == taken).all((2, 3, 4)))[:1]
        places.add(tuple(place))
    assert len(places) > 1 or shape == (16, 16) or windows.shape[:2] == (1, 1)
    # Without a generator it is the center, as in evaluation.
    np.testing.assert_array_equal(crop(image, SIDE), Crop(center)(image, SIDE))


def test_a_resized_part_is_a_box_of_the_image_scaled_bilinearly():
    """The box from the same random numbers, by the formula of torchvision."""
    image = picture(100, 131)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        area, ratio = 100 * 131 * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if width > 131 or height > 100:
            continue
        left, top = rng.integers(0, 131 - width, endpoint=True), rng.integers(0, 100 - height, endpoint=True)
        expected = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.BILINEAR)
        taken = Crop(random="resized")(image, SIDE, np.random.default_rng(seed))
        np.testing.assert_array_equal(taken, expected)


@pytest.mark.parametrize("random", ["window", "resized", "adm"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (15, 17)])
def test_random_crops_of_odd_images_have_their_size(random, shape):
    for seed in range(3):
        assert Crop(random=random)(picture(*shape), (8, 16), np.random.default_rng(seed)).shape == (8, 16, 3)
        assert Crop("adm", random)(picture(*shape).convert("L"), 8, np.random.default_rng(seed)).shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("admm",), "config.data.crop='admm' is unknown; did you mean 'adm'?"),
        (("adm", "windw"), "config.data.random_crop='windw' is unknown; did you mean 'window'?"),
    ],
)
def test_crops_that_do_not_exist_are_refused(names, message, as_users_run_it):
    with pytest.raises(UserError) as error:
        Crop(*names)
    assert str(error.value).startswith(message)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        (tmp_path / split).mkdir()
        for number in range(count):
            picture(30 + number, 60).save(tmp_path / split / f"{number:02}.png")
    return tmp_path


def splits_of(folder, **options):
    return image_folder_splits(folder, SIDE, eval_split="val", **options)


def feed_of(dataset, mesh, seed=0, resident_limit=2**30):
    options = {"batch_size": 4, "steps_per_dispatch": 2, "resident_limit": resident_limit, "mesh": mesh}
    return make_feed(dataset, seed=seed, **options)


def batches(feed, first, count):
    staged = [feed.select(feed.stage(step, 1), 0)["image"] for step in range(first, first + count)]
    feed.close()
    return np.stack(staged)


@pytest.fixture
def mesh():
    import jax

    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])


def test_random_crops_depend_on_seed_and_step_alone(folder, mesh):
    train, evaluation = splits_of(folder, random_crop="resized")
    assert is_random(train)
    assert not is_random(evaluation)
    whole = feed_of(train, mesh)
    assert isinstance(whole, StreamedFeed)
    seen = batches(whole, 0, 9)
    np.testing.assert_array_equal(batches(feed_of(train, mesh), 5, 4), seen[5:])
    assert not (batches(feed_of(train, mesh, seed=1), 0, 9) == seen).all()
    # Three steps are an epoch: each image comes again as another crop.
    shown = {image.tobytes() for image in seen.reshape(-1, SIDE, SIDE, 3)}
    assert len(shown) > 30
    assert isinstance(feed_of(splits_of(folder).train, mesh), ResidentFeed)


def test_an_unreadable_image_is_replaced_by_a_random_crop_of_the_next(folder, mesh):
    train = splits_of(folder, random_crop="window").train
    (folder / "train" / "05.png").write_bytes(b"nothing")
    seen = [batches(feed_of(train, mesh), 0, 3) for _ in range(2)]
    np.testing.assert_array_equal(*seen)


def test_some_of_the_training_images_are_always_the_same(folder):
    some, every = (splits_of(folder, train_images=count) for count in (5, 12))
    names = [some.train.origin(i) for i in range(5)]
    assert names == [splits_of(folder, train_images=5).train.origin(i) for i in range(5)] == sorted(names)
    assert len(every.train) == 12
    assert len(some.eval) == 4
    for count in (0, 13):
        with pytest.raises(UserError, match=r"train_images must be from 1 to 12, .* or None for all, got "):
            splits_of(folder, train_images=count)


def test_configs_name_the_crops(folder):
    config = base_config()
    config.num_steps = 1
    config.data = {"source": "image_folder", "name": str(folder), "eval_split": "val", "crop": "adm"}
    assert validate(config).data.random_crop is None
    build_task(validate(config), ArrayDataset("black", np.zeros((2, 32, 32, 3), np.uint8), image_size=32))
    config.data.crop = "admm"
    with pytest.raises(UserError, match=r"config.data.crop='admm' is unknown; did you mean 'adm'\?"):
        validate(config)
