"""Features of clips: those of a network of clips, or of a network of images by frame."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vqjax.errors import UserError
from vqjax.evaluation.features import FeatureNetwork, in_color, in_parts
from vqjax.evaluation.scaling import SCALINGS
from vqjax.functional.clips import frames_of

# I3D takes 35 MB for what it computes of 16 frames.
_AT_ONCE = 8

ClipsOf8Bits = UInt8[Array, "batch frames height width channels"]


class ClipFeatures(flax.struct.PyTreeNode):
    """Features of clips of 8 bits by a frozen network.

    A network of clips, such as I3D, maps a clip to one vector. Of a network of images, a clip has the mean over time of
    the features of its frames, and the mean over time of the absolute differences between successive ones, twice as
    many numbers as an image.

    Attributes:
      network: The network.

    Raises:
      UserError: The clips are shorter than the network, or differences, need.

    Example:
      >>> import flax.linen as nn
      >>> class Colors(nn.Module):
      ...     def __call__(self, images):
      ...         return jnp.mean(images, axis=(1, 2))
      >>> features = ClipFeatures(FeatureNetwork(Colors(), {}, "colors", "none", size=None))
      >>> dark, bright = jnp.zeros((1, 1, 8, 8, 3), jnp.uint8), jnp.full((1, 1, 8, 8, 3), 255, jnp.uint8)
      >>> features(jnp.concatenate([dark, bright], axis=1)).tolist()
      [[0.0, 0.0, 0.0, 2.0, 2.0, 2.0]]
    """

    network: FeatureNetwork

    @property
    def how(self) -> str:
        """Network, weights, scaling and what is taken of it, for protocols."""
        if self.network.takes_clips:
            return self.network.how
        return f"{self.network.how}; means over time of features by frame, and of their absolute differences"

    @property
    def dim(self) -> int:
        """Number of features of a clip."""
        clips = jax.ShapeDtypeStruct((1, 16, 64, 64, 3), jnp.uint8)
        return jax.eval_shape(self, clips).shape[1]

    def __call__(self, clips: ClipsOf8Bits) -> Float[Array, "batch dim"]:
        """Return the features of clips, in color or gray."""
        if self.network.takes_clips:
            return in_parts(self._of_clips, clips, _AT_ONCE)
        if clips.shape[1] < 2:
            raise UserError(f"`clips` must have at least 2 frames for differences, got shape {clips.shape}.")
        by_frame = self.network(frames_of(clips)).pool
        by_frame = by_frame.reshape(*clips.shape[:2], by_frame.shape[-1])
        parts = by_frame, jnp.abs(jnp.diff(by_frame, axis=1))
        return jnp.concatenate([jnp.mean(part, axis=1) for part in parts], axis=-1)

    def _of_clips(self, clips: ClipsOf8Bits) -> Float[Array, "batch dim"]:
        frames = in_color(frames_of(clips))
        scaled = SCALINGS[self.network.scaling](frames, self.network.size or frames.shape[1:3])
        return self.network.of_scaled(scaled.reshape(*clips.shape[:2], *scaled.shape[1:])).pool
