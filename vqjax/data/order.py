"""In which order training visits the images: a pure function of the seed and the step."""

import functools

import numpy as np
from jaxtyping import Int32

from vqjax.errors import UserError


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Int32[np.ndarray, " batch"]:
    """The indices of the images of one training step.

    Every epoch is a fresh permutation of all images; the images that do not fill a last batch are dropped, other
    ones each epoch. Because nothing but the arguments matters, a resumed run needs no saved data position.

    Args:
        seed: the run's seed.
        step: the training step, from 0.
        batch_size: images per step.
        num_images: images in the dataset.

    Returns:
        int32 in [0, num_images), no index twice in one epoch.

    Raises:
        UserError: a batch is larger than the dataset.

    Example:
        >>> first, second = (batch_indices(0, step, batch_size=2, num_images=4) for step in (0, 1))
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3]
    """
    if batch_size > num_images:
        raise UserError(
            f"batch_size={batch_size} is larger than the {num_images} training images; use {num_images} or less"
        )
    epoch, batch = divmod(step, num_images // batch_size)
    return _permutation(seed, epoch, num_images)[batch * batch_size : (batch + 1) * batch_size]


# Two, because several threads may read the end of one epoch and the start of the next at the same time.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> Int32[np.ndarray, " images"]:
    key = np.array([seed % 2**64, epoch], np.uint64)
    permutation = np.random.Generator(np.random.Philox(key=key)).permutation(num_images).astype(np.int32)
    permutation.setflags(write=False)
    return permutation
