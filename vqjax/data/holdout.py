"""Which images of an undivided collection are kept away from training."""

import numpy as np
from jaxtyping import Int

from vqjax.errors import UserError


def hold_out(
    num_images: int, eval_fraction: float, *, name: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " heldout"]]:
    """Divides indices at random, the same way every time, into training and held-out ones.

    Args:
        num_images: how many images there are.
        eval_fraction: the share to hold out, in (0, 1); at least one image lands on either side.
        name: the collection, for the error message.

    Returns:
        the training and the held-out indices, each in rising order.

    Raises:
        UserError: the fraction is out of range, or a single image would have to be divided.

    Example:
        >>> train, heldout = hold_out(10, 0.2, name="holiday")
        >>> len(train), len(heldout), sorted([*train, *heldout]) == list(range(10))
        (8, 2, True)
    """
    if not 0 < eval_fraction < 1:
        raise UserError(
            f"config.data.eval_fraction={eval_fraction} must lie between 0 and 1; use 0.1 to hold out a tenth"
        )
    if num_images < 2:
        raise UserError(
            f"config.data.name={name!r} has {num_images} readable image, but training and evaluation need one each; "
            "add images"
        )
    num_heldout = min(max(1, round(num_images * eval_fraction)), num_images - 1)
    shuffled = np.random.Generator(np.random.Philox(key=0)).permutation(num_images)
    return np.sort(shuffled[num_heldout:]), np.sort(shuffled[:num_heldout])
