"""Files of trained feature networks, next to the record of how well they classify."""

import hashlib
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load, save

from studies.common.records import Results
from vqjax.errors import UserError, did_you_mean
from vqjax.importing.features import load_resnet
from vqjax.models.feature_discriminator import FrozenNetwork
from vqjax.runtime.files import atomic_file

DIRECTORY = Path(__file__).parent
"""Directory of the networks that are part of the repository."""

RECORDS = "results.jsonl"


def rounded(variables: dict[str, Any]) -> dict[str, Any]:
    """Round kernels to the float16 in which they are stored.

    Args:
      variables: Variables of a network in float32.

    Example:
      >>> print(rounded({"kernel": jnp.full((1, 1), 1 / 3)})["kernel"])
      [[0.33325195]]
    """
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype) if x.ndim > 1 else x, variables)


def save_network(path: Path, variables: dict[str, Any]) -> str:
    """Write the variables of a network.

    Args:
      path: The ``.safetensors`` file.
      variables: The variables, :func:`rounded`.

    Returns:
      Checksum of the file, SHA-256.
    """
    arrays = flax.traverse_util.flatten_dict(jax.device_get(variables), sep=".")
    content = save({name: x.astype(np.float16 if x.ndim > 1 else np.float32) for name, x in arrays.items()})
    with atomic_file(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def load_network(name: str = "cifar10", directory: Path = DIRECTORY) -> FrozenNetwork:
    """Load a trained feature network.

    Args:
      name: Name of the network, that of its training images.
      directory: Directory of its weights and of its record.

    Returns:
      A :class:`vqjax.models.ResNet` that maps images in [-1, 1] to feature maps, with its variables, for
      :class:`vqjax.models.lpips.LPIPS` or :class:`vqjax.models.feature_discriminator.FeatureDiscriminator`.

    Raises:
      UserError: There is no network of this name, or the file of its weights is missing or damaged.
    """
    found = {record.run: record for record in Results(directory / RECORDS).records()}
    if name not in found:
        raise UserError(f"name must be a trained network of {directory}, got {name!r}; {did_you_mean(name, found)}")
    path, record = directory / f"{name}.safetensors", found[name]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != record.measured["sha256"]:
        state = "does not match its checksum" if content else "is missing or empty"
        raise UserError(
            f"{path} must be the file that {RECORDS} names, but it {state}; check it out or train it again."
        )
    return FrozenNetwork(*load_resnet(load(content)))
