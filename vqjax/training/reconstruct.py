"""Reconstruction of a photograph by a trained tokenizer."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.discovery import CHECKPOINTS
from vqjax.data import to_uint8
from vqjax.data.dataset import UnreadableImage
from vqjax.data.images import Size, decode_image, height_and_width, resize_and_center_crop
from vqjax.errors import UserError
from vqjax.evaluation.metrics import psnr
from vqjax.models.tokenizer import Tokenizer
from vqjax.models.vqvae import takes_clips
from vqjax.reporting import comparison_sheet, save_png
from vqjax.runtime.paths import is_url, local_path
from vqjax.training.share import number_of_codes

_MULTIPLE = 32
"""What sides are multiples of, so that all published tokenizers divide them."""

_LARGEST = 4096


def reconstruct_image(
    image: str | Path, /, *, tokenizer: str, out: str | Path = "reconstruction.png", size: int = 512
) -> None:
    """Pass a photograph through a tokenizer, and draw it beside what its tokens keep of it.

    Args:
      image: The photograph: PNG, JPEG, WebP and so on.
      tokenizer: Directory of a run, or of vqjax share, or OWNER/NAME on the hub.
      out: The picture, a PNG; a .npy file of the tokens is written beside it.
      size: Longer side of the photograph for the tokenizer, in pixels. The shorter one follows, and of both the middle
        is taken, a multiple of 32.

    Raises:
      UserError: There is no such tokenizer, or the photograph cannot be read or does not fit it.
    """
    if not _MULTIPLE <= size <= _LARGEST:
        raise UserError(f"--size must be from {_MULTIPLE} to {_LARGEST} pixels, got {size}.")
    file, out = local_path(image, "IMAGE"), local_path(out, "--out")
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png, got {str(out)!r}.")
    if out.resolve() == file.resolve():
        raise UserError(f"--out must be another file than the photograph, got {str(out)!r} for both.")
    loaded = _loaded(tokenizer)
    channels = loaded.config["model"].get("image_channels", 3)
    try:
        original = decode_image(file, size, path=file, channels=channels, crop=_resize)[None]
    except UnreadableImage as error:
        raise UserError(f"IMAGE must be a photograph, got {error}.") from error
    if takes_clips(loaded.model):
        raise UserError(f"--tokenizer must be one of images, got one of clips: {tokenizer}; see docs/video.md.")
    tokens = np.asarray(loaded.encode(original))
    reconstruction = np.asarray(to_uint8(loaded.decode(tokens)))
    if reconstruction.shape != original.shape:
        taken, returned = (" x ".join(map(str, array.shape[2:0:-1])) for array in (original, reconstruction))
        raise UserError(
            f"IMAGE and --size must give the pixels that this tokenizer is for, got {taken}, of which it makes "
            f"{returned}; pass --size={max(reconstruction.shape[1:3])} and a photograph of these proportions."
        )
    error = float(psnr(*(jnp.asarray(x, jnp.float32) / 255 for x in (original, reconstruction)))[0])
    save_png(out, comparison_sheet(original, reconstruction))
    np.save(out.with_suffix(".npy"), tokens[0])
    bits = tokens.size * float(np.mean(np.log2(loaded.model.quantizer.codebook_sizes)))
    (height, width), grid = original.shape[1:3], " x ".join(map(str, tokens.shape[1:]))
    print(
        f"{width} x {height} pixels, {grid} tokens of {number_of_codes(loaded)} codes: "
        f"{math.ceil(bits / 8):,} bytes instead of {original.size:,}\nPSNR: {error:.2f} dB\npicture: {out}\n"
        f"tokens: {out.with_suffix('.npy')}",
        flush=True,
    )


def _loaded(tokenizer: str) -> Tokenizer:
    """The tokenizer of a run, or one that was shared."""
    # A run in remote storage alone is no local path.
    remote = is_url(tokenizer) and not tokenizer.startswith("file:")
    if remote or (local_path(tokenizer, "--tokenizer") / CHECKPOINTS).exists():
        return load_tokenizer(tokenizer)
    return Tokenizer.from_pretrained(tokenizer)


def _resize(image: Image.Image, longest: Size) -> UInt8[np.ndarray, "height width channels"]:
    """An image whose longer side is as given, with its middle cut to sides that a tokenizer can divide."""
    scale = max(height_and_width(longest)) / max(image.size)
    width, height = (max(_MULTIPLE, round(scale * side) // _MULTIPLE * _MULTIPLE) for side in image.size)
    return resize_and_center_crop(image, (height, width))
