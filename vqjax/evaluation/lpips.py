"""LPIPS as a metric of an evaluation."""

import os
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vqjax.data import to_model_range
from vqjax.evaluation.features import in_color
from vqjax.evaluation.metric import ImageMean, Numbers, Outputs
from vqjax.importing.lpips import load_lpips
from vqjax.models.features import VGG16
from vqjax.models.lpips import LPIPS
from vqjax.runtime.files import file_checksum
from vqjax.runtime.paths import local_path


class PerceptualDistance(ImageMean):
    """LPIPS of reconstructions, ``lpips_vgg`` or ``lpips_alex``; None for images smaller than its network takes.

    Attributes:
      module: LPIPS over VGG-16 or AlexNet.
      variables: Its variables.
      weights: What identifies them, for the protocol.

    Example:
      >>> PerceptualDistance(LPIPS(), {}, "SHA-256 0123abcd").protocol
      {'lpips_vgg': 'LPIPS 0.1 over VGG16, weights of SHA-256 0123abcd, reconstruction clipped, mean over images'}

    Source: Zhang et al., 2018 (arXiv 1801.03924).
    """

    higher_is_better: ClassVar = {"lpips_vgg": False, "lpips_alex": False}

    module: LPIPS = flax.struct.field(pytree_node=False)
    variables: PyTree[Any]
    weights: str = flax.struct.field(pytree_node=False)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str]) -> "PerceptualDistance":
        """Return the metric with the weights in a file, such as ``vqjax convert`` writes it.

        Args:
          file: As :func:`vqjax.importing.lpips.load_lpips` takes it.
        """
        file = local_path(file, "lpips")
        return cls(*load_lpips(file), f"SHA-256 {file_checksum(file)[:8]}")

    @property
    def protocol(self) -> dict[str, str]:
        network = type(self.module.network).__name__
        return {
            self._name: f"LPIPS 0.1 over {network}, weights of {self.weights}, reconstruction clipped, mean over images"
        }

    @property
    def _name(self) -> str:
        return "lpips_vgg" if isinstance(self.module.network, VGG16) else "lpips_alex"

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        images = outputs["image"]
        if min(images.shape[1:3]) < (16 if isinstance(self.module.network, VGG16) else 31):
            return {}
        clipped = jnp.clip(outputs["reconstruction"].astype(jnp.float32), -1, 1)
        pair = in_color(to_model_range(images)), in_color(clipped)
        return {self._name: self.module.apply(self.variables, *pair)}

    def numbers(self, means: dict[str, float]) -> Numbers:
        return {self._name: None} | means
