"""Weights of feature networks in a small file that the trainer reads at once."""

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from vqjax.errors import UserError
from vqjax.importing.features import load_features, with_torchvision_names
from vqjax.importing.lpips import load_lpips
from vqjax.importing.state_dict import read_state_dict
from vqjax.runtime.files import atomic_file, file_checksum
from vqjax.runtime.paths import local_path

_KEPT = re.compile(r"^(features\.\d+\.(weight|bias)|lin\d\.model\.1\.weight)$")


def convert_features(file: str | Path, /, *, output: str | Path, heads: str | None = None) -> None:
    """Write the weights that LPIPS and feature discriminators need into one file of safetensors.

    Only the convolutions of VGG-16 or AlexNet and the heads of LPIPS are kept: 59 of the 528 MB of torchvision's
    VGG-16. Nothing in the files is executed, and PyTorch need not be installed.

    Args:
      file: File of torchvision's vgg16 or alexnet, of LPIPS, or of a tokenizer that was trained with it (.pth, .pt,
        .ckpt or .safetensors).
      output: The new file, which ends in .safetensors; for --config.task.perceptual.file.
      heads: File of the heads of LPIPS, if they are not in the first: weights/v0.1/vgg.pth or alex.pth of the package
        lpips.

    Raises:
      UserError: The files are not of such networks, or not of the same.
    """
    output = local_path(output, "--output")
    if output.suffix != ".safetensors":
        raise UserError(f"--output must end in .safetensors, got {str(output)!r}; it holds no other format.")
    arrays = with_torchvision_names(read_state_dict(file))
    if heads is not None:
        arrays |= read_state_dict(heads)
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items() if _KEPT.match(name)}
    with_heads = any(name.startswith("lin") for name in kept)
    # What cannot be loaded is not written.
    module, _ = (load_lpips if with_heads else load_features)(kept)
    with atomic_file(output) as written:
        written.write(save(kept))
    network = type(module.network if with_heads else module).__name__
    what = f"LPIPS over {network}" if with_heads else f"{network} without the heads of LPIPS, for discriminators"
    print(f"{output}: {what}, {output.stat().st_size / 1e6:.1f} MB, SHA-256 {file_checksum(output)}")
