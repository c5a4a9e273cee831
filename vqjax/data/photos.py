"""Source ``photos``: square crops of the color photographs that come with scikit-image; nothing is downloaded."""

import importlib.resources
from importlib.metadata import version

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from vqjax.data.dataset import Example, Splits
from vqjax.data.images import Size, check_channels, height_and_width, with_channels
from vqjax.errors import UserError

TRAINING_SCENES = (
    ("astronaut.png",),
    ("hubble_deep_field.jpg",),
    ("ihc.png",),
    ("motorcycle_left.png", "motorcycle_right.png"),
    ("retina.jpg",),
    ("rocket.jpg",),
)
"""Photographs to train on, grouped by scene, which must not be seen in evaluation, from whichever camera."""

EVAL_SCENES = (("chelsea.png",), ("coffee.png",))
"""Photographs to evaluate on: a cat and a cup, as everybody can judge their reconstructions."""

SMALLEST_CONTRAST = 6.0
"""Standard deviation of the luma, of 255, that a part should have; clear sky is below, out-of-focus fur above."""

_TRAINING_CROPS_PER_SCENE = 1024
_EVAL_CROPS_PER_SCENE = 256
_LARGEST_CROP = 4  # times image_size


class PhotoCrops:
    """Crops of a few photographs, the same in every run, an :class:`vqjax.data.ImageDataset` without labels.

    The side of a crop is log-uniform between ``image_size`` and four times that, so that the same objects are seen
    from near and far; nearly constant crops are drawn again.

    Args:
      name: Name in reports.
      scenes: File names in scikit-image's data directory; each inner tuple shows one scene.
      crops_per_scene: Crops of every scene, shared equally among its photographs.
      image_size: Height and width of the images in pixels, or one number for both.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

    Raises:
      UserError: ``image_size`` is larger than a photograph, or scikit-image came without one.
    """

    class_names = None

    def __init__(
        self,
        name: str,
        scenes: tuple[tuple[str, ...], ...],
        crops_per_scene: int,
        image_size: Size,
        channels: int = 3,
    ):
        check_channels(channels)
        self.name = name
        self._size, self._channels = height_and_width(image_size), channels
        self._file_names: dict[int, str] = {}
        crops = []
        for scene in scenes:
            for file_name in scene:
                photo = load_photo(file_name)
                boxes = _crop_boxes(photo, crops_per_scene // len(scene), self._size)
                photo = with_channels(photo, channels)
                self._file_names[id(photo)] = file_name
                crops += [(photo, tuple(box)) for box in boxes.tolist()]
        # Shuffled, so that the first few images, which reports show, come from all photographs.
        self._crops = [crops[i] for i in _generator().permutation(len(crops))]

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Example:
        photo, box = self._crops[index]
        height, width = self._size
        crop = photo.resize((width, height), Image.Resampling.LANCZOS, box)
        return {"image": np.asarray(crop).reshape(height, width, -1)}

    def stamp(self) -> str:
        """Return what the crops depend on."""
        return repr((self.name, self._size, self._channels, version("scikit-image")))

    def origin(self, index: int) -> str:
        """Return the photograph, and left, upper, right and lower edge of the crop."""
        photo, box = self._crops[index]
        return f"{self._file_names[id(photo)]}{list(box)}"


def photo_splits(image_size: Size = 32, channels: int = 3) -> Splits:
    """Crop the bundled photographs; the held-out ones show a cat and a coffee cup that training never sees.

    Args:
      image_size: Height and width of the images in pixels, or one number for both; at most 300.
      channels: 1 for gray, 3 for RGB, 4 for RGB and opacity.

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
        PhotoCrops("photos/train", TRAINING_SCENES, _TRAINING_CROPS_PER_SCENE, image_size, channels),
        PhotoCrops("photos/eval", EVAL_SCENES, _EVAL_CROPS_PER_SCENE, image_size, channels),
    )


def load_photo(file_name: str) -> Image.Image:
    """Read one of the photographs that come with scikit-image.

    Args:
      file_name: Its name in the data directory of scikit-image.

    Returns:
      The photograph, in color.

    Raises:
      UserError: scikit-image came without it.

    Example:
      >>> load_photo("chelsea.png").size
      (451, 300)
    """
    # Not through skimage.data.<photo>(): with pooch installed that may copy into a cache, or download.
    resource = importlib.resources.files("skimage.data") / file_name
    if not resource.is_file():
        raise UserError(
            f"config.data.source needs {file_name}, which the installed scikit-image lacks; "
            "install it again with `pip install --force-reinstall scikit-image`."
        )
    with resource.open("rb") as file, Image.open(file) as image:
        return image.convert("RGB")


def _crop_boxes(photo: Image.Image, count: int, size: tuple[int, int]) -> Int64[np.ndarray, "count 4"]:
    """Draw ``count`` crops as left, upper, right and lower edge, the same every time."""
    height, width = size
    if height > photo.height or width > photo.width:
        shorter = min(photo.size)
        raise UserError(
            f"config.data.image_size must be at most {shorter}, the shorter side of the smallest bundled photograph, "
            f"got {height if height == width else size}; use a smaller size, or config.data.source='image_folder' "
            "with larger images."
        )
    generator = _generator()
    sums = summed_area_tables(photo)
    accepted = np.empty((0, 4), np.int64)
    while len(accepted) < count:
        largest = min(_LARGEST_CROP * height, photo.height, photo.width * height // width)
        heights = np.exp(generator.uniform(np.log(height), np.log(largest), count)).round().astype(np.int64)
        sides = np.stack([np.minimum((heights * width / height).round().astype(np.int64), photo.width), heights], 1)
        corners = generator.integers(0, np.array(photo.size) - sides, endpoint=True)
        boxes = np.concatenate([corners, corners + sides], axis=1)
        accepted = np.concatenate([accepted, boxes[contrast(sums, boxes) >= SMALLEST_CONTRAST]])
    return accepted[:count]


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=0))


def summed_area_tables(photo: Image.Image) -> Float[np.ndarray, "2 height_plus_1 width_plus_1"]:
    """Return the sums of the luma, and of its square, over all boxes that begin at the upper left corner.

    Args:
      photo: The photograph.

    Example:
      >>> summed_area_tables(Image.new("L", (3, 2), 10))[0, -1, -1]
      np.float64(60.0)
    """
    luma = np.asarray(photo.convert("L"), np.float64)
    return np.pad(np.stack([luma, luma**2]).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))


def contrast(
    sums: Float[np.ndarray, "2 height_plus_1 width_plus_1"], boxes: Int64[np.ndarray, "boxes 4"]
) -> Float[np.ndarray, " boxes"]:
    """Return the standard deviation of the luma in boxes of a photograph.

    Args:
      sums: Its :func:`summed_area_tables`.
      boxes: Left, upper, right and lower edge of each box.

    Example:
      >>> half_white = Image.new("L", (4, 2))
      >>> half_white.paste(200, (2, 0, 4, 2))
      >>> contrast(summed_area_tables(half_white), np.array([[0, 0, 4, 2], [0, 0, 2, 2]])).tolist()
      [100.0, 0.0]
    """
    left, upper, right, lower = boxes.T
    totals = sums[:, lower, right] - sums[:, upper, right] - sums[:, lower, left] + sums[:, upper, left]
    mean, mean_of_squares = totals / ((right - left) * (lower - upper))
    return np.sqrt(np.maximum(mean_of_squares - mean**2, 0.0))
