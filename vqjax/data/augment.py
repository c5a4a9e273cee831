"""Augmentation of image batches inside the compiled step, and conversion to the pixel range of the models."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key, UInt8

from vqjax.errors import UserError
from vqjax.functional.sharding import with_automatic_axes


@with_automatic_axes(like="images")
def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "batch *frames height width channels"],
    *,
    flip: bool,
    crop_padding: int | None,
) -> UInt8[Array, "batch *frames height width channels"]:
    """Flip half of the images left to right, and shift each by up to ``crop_padding`` pixels either way.

    A shift fills in the reflection of the image at its edge. Each image is treated independently, and all frames of a
    clip alike.

    Args:
      key: A typed key; the same key gives the same result.
      images: Images or clips in [0, 255].
      flip: Flip half of the images.
      crop_padding: Largest shift in pixels along either axis; None for none.

    Returns:
      Images of the same shape, made of the same pixel values.

    Raises:
      UserError: ``crop_padding`` is below 1, or not smaller than the image.

    Example:
      >>> images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
      >>> augment(jax.random.key(0), images, flip=True, crop_padding=2).shape
      (2, 8, 8, 3)
    """
    if images.ndim == 5:
        # Of frames as channels, nothing else can become of one than of the others.
        as_channels = jnp.moveaxis(images, 1, -2)
        shape = as_channels.shape
        augmented = augment(key, as_channels.reshape(*shape[:3], -1), flip=flip, crop_padding=crop_padding)
        return jnp.moveaxis(augmented.reshape(shape), -2, 1)
    flip_key, crop_key = jax.random.split(key)
    if flip:
        flipped = jax.random.bernoulli(flip_key, jnp.float32(0.5), (len(images), 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if crop_padding is not None:
        images = _random_shift(crop_key, images, crop_padding)
    return images


def _random_shift(
    key: Key[Array, ""], images: UInt8[Array, "batch height width channels"], crop_padding: int
) -> UInt8[Array, "batch height width channels"]:
    batch, height, width, _ = images.shape
    if not 1 <= crop_padding < min(height, width):
        raise UserError(
            f"crop_padding must be in [1, {min(height, width) - 1}] for {height} x {width} images, got {crop_padding}; "
            "use None for no random crop."
        )
    spatial = (crop_padding, crop_padding)
    padded = jnp.pad(images, ((0, 0), spatial, spatial, (0, 0)), mode="reflect")
    corners = jax.random.randint(key, (batch, 2), 0, 2 * crop_padding + 1, jnp.int32)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def to_model_range(images: UInt8[Array | np.ndarray, "*shape"]) -> Float32[Array, "*shape"]:
    """Scale 8-bit pixels to [-1, 1]: x / 127.5 - 1.

    Args:
      images: In [0, 255].

    Returns:
      Pixels in [-1, 1].

    Raises:
      UserError: The images are not uint8, so that their range is not known.

    Example:
      >>> to_model_range(jnp.array([0, 255], jnp.uint8)).tolist()
      [-1.0, 1.0]
    """
    found = getattr(images, "dtype", type(images).__name__)
    if found != jnp.uint8:
        raise UserError(f"`images` must be uint8, got {found}; pass pixels in [0, 255], or scale them yourself.")
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array, "*shape"]:
    """Convert images in [-1, 1] to 8 bits: rounded to the nearest pixel value, and clipped to [0, 255].

    Args:
      images: Images of any float type, nominally in [-1, 1].

    Returns:
      Pixels in [0, 255]; the inverse of :func:`to_model_range`.

    Raises:
      UserError: The images are not of a float type.

    Example:
      >>> to_uint8(jnp.array([-1.5, 0.0, 1.0])).tolist()
      [0, 128, 255]
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"`images` must be floats in [-1, 1], got {images.dtype}; uint8 images are in 8 bits already.")
    return jnp.clip(jnp.round((images.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
