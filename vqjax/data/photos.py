"""Source ``photos``: square crops of the color photographs that come with scikit-image; nothing is downloaded."""

import importlib.resources

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from vqjax.data.dataset import Example, Splits
from vqjax.errors import UserError

# Grouped by scene: a scene must not be seen in training and in evaluation, from whichever camera.
_TRAINING_SCENES = (
    ("astronaut.png",),
    ("hubble_deep_field.jpg",),
    ("ihc.png",),
    ("motorcycle_left.png", "motorcycle_right.png"),
    ("retina.jpg",),
    ("rocket.jpg",),
)
# A cat and a cup: everybody can judge their reconstructions.
_EVAL_SCENES = (("chelsea.png",), ("coffee.png",))
_TRAINING_CROPS_PER_SCENE = 1024
_EVAL_CROPS_PER_SCENE = 256
_LARGEST_CROP = 4  # times image_size
_SMALLEST_CONTRAST = 6.0  # standard deviation of the luma, of 255; clear sky is below, out-of-focus fur above


class PhotoCrops:
    """Crops of a few photographs, the same in every run, an :class:`vqjax.data.ImageDataset` without labels.

    The side of a crop is log-uniform between ``image_size`` and four times that, so that the same objects are seen
    from near and far; nearly constant crops are drawn again.

    Args:
      name: Name in reports.
      scenes: File names in scikit-image's data directory; each inner tuple shows one scene.
      crops_per_scene: Crops of every scene, shared equally among its photographs.
      image_size: Side of the images in pixels.

    Raises:
      UserError: ``image_size`` is larger than a photograph, or scikit-image came without one.
    """

    class_names = None

    def __init__(self, name: str, scenes: tuple[tuple[str, ...], ...], crops_per_scene: int, image_size: int):
        self.name = name
        self._image_size = image_size
        crops = []
        for scene in scenes:
            for file_name in scene:
                photo = _load(file_name)
                boxes = _crop_boxes(photo, crops_per_scene // len(scene), image_size)
                crops += [(photo, tuple(box)) for box in boxes.tolist()]
        # Shuffled, so that the first few images, which reports show, come from all photographs.
        self._crops = [crops[i] for i in _generator().permutation(len(crops))]

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Example:
        photo, box = self._crops[index]
        size = (self._image_size, self._image_size)
        return {"image": np.asarray(photo.resize(size, Image.Resampling.LANCZOS, box))}


def photo_splits(image_size: int = 32) -> Splits:
    """Crop the bundled photographs; the held-out ones show a cat and a coffee cup that training never sees.

    Args:
      image_size: Side of the images in pixels, at most 300.

    Returns:
      6144 training crops and 512 held-out ones.

    Raises:
      UserError: ``image_size`` is larger than the smallest photograph, or scikit-image came without one.

    Example:
      >>> splits = photo_splits(image_size=16)
      >>> len(splits.train), len(splits.eval), splits.train[0]["image"].shape
      (6144, 512, (16, 16, 3))
    """
    return Splits(
        PhotoCrops("photos/train", _TRAINING_SCENES, _TRAINING_CROPS_PER_SCENE, image_size),
        PhotoCrops("photos/eval", _EVAL_SCENES, _EVAL_CROPS_PER_SCENE, image_size),
    )


def _load(file_name: str) -> Image.Image:
    # Not through skimage.data.<photo>(): with pooch installed that may copy into a cache, or download.
    resource = importlib.resources.files("skimage.data") / file_name
    if not resource.is_file():
        raise UserError(
            f"config.data.source='photos' needs {file_name}, which the installed scikit-image lacks; "
            "install it again with `pip install --force-reinstall scikit-image`"
        )
    with resource.open("rb") as file, Image.open(file) as image:
        return image.convert("RGB")


def _crop_boxes(photo: Image.Image, count: int, image_size: int) -> Int64[np.ndarray, "count 4"]:
    """Draw ``count`` crops as left, upper, right and lower edge, the same every time."""
    shorter = min(photo.size)
    if image_size > shorter:
        raise UserError(
            f"config.data.image_size must be at most {shorter}, the shorter side of the smallest bundled photograph, "
            f"got {image_size}; use a smaller size, or config.data.source='image_folder' with larger images"
        )
    generator = _generator()
    sums = _summed_area_tables(photo)
    accepted = np.empty((0, 4), np.int64)
    while len(accepted) < count:
        largest = min(_LARGEST_CROP * image_size, shorter)
        sides = np.exp(generator.uniform(np.log(image_size), np.log(largest), count)).round().astype(np.int64)
        corners = generator.integers(0, np.array(photo.size) - sides[:, None], endpoint=True)
        boxes = np.concatenate([corners, corners + sides[:, None]], axis=1)
        accepted = np.concatenate([accepted, boxes[_contrast(sums, boxes) >= _SMALLEST_CONTRAST]])
    return accepted[:count]


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=0))


def _summed_area_tables(photo: Image.Image) -> Float[np.ndarray, "2 height_plus_1 width_plus_1"]:
    luma = np.asarray(photo.convert("L"), np.float64)
    return np.pad(np.stack([luma, luma**2]).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))


def _contrast(
    sums: Float[np.ndarray, "2 height_plus_1 width_plus_1"], boxes: Int64[np.ndarray, "boxes 4"]
) -> Float[np.ndarray, " boxes"]:
    left, upper, right, lower = boxes.T
    totals = sums[:, lower, right] - sums[:, upper, right] - sums[:, lower, left] + sums[:, upper, left]
    mean, mean_of_squares = totals / ((right - left) * (lower - upper))
    return np.sqrt(np.maximum(mean_of_squares - mean**2, 0.0))
