"""Metrics of video clips: those of images, frame by frame, and what changes from frame to frame."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vqjax.evaluation.metric import ImageMean, Metric, Numbers, Outputs
from vqjax.evaluation.metrics import MSE, PSNR, PSNR_CAP, SSIM, CodeUsage, ImageCount, TokenLosses, psnr
from vqjax.functional.clips import frames_of


class ClipCount(ImageCount):
    """Number of clips in the split, and batch size."""

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "clips": "clips of the split, each seen once",
            "frames_per_clip": "frames of a clip",
            "batch_size": "clips per batch, including padding in the last batch",
        }

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return {"valid": outputs["valid"], "frames": jnp.int32(outputs["video"].shape[1])}

    def init(self) -> Numbers:
        return {"clips": 0, "frames_per_clip": 0, "batch_size": 0}

    def update(self, state: Numbers, measured: PyTree[Array]) -> Numbers:
        valid = measured["valid"]
        clips = state["clips"] + int(valid.sum())
        return {"clips": clips, "frames_per_clip": int(measured["frames"]), "batch_size": len(valid)}


class OfFrames(ImageMean):
    """A metric of images, of each frame of clips.

    Attributes:
      metric: The metric; its values are averaged over the frames of a clip first.

    Example:
      >>> clips = jnp.zeros((1, 2, 4, 4, 3), jnp.uint8)
      >>> outputs = {"video": clips, "reconstruction": jnp.full(clips.shape, -0.8), "valid": jnp.array([True])}
      >>> print(OfFrames(PSNR()).per_image(outputs)["psnr"].round(3))
      [20.]
    """

    metric: ImageMean

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """That of the metric, by the names of its numbers."""
        return dict(self.metric.higher_is_better)

    @property
    def protocol(self) -> dict[str, str]:
        return {name: f"of frames as images, by clip first: {text}" for name, text in self.metric.protocol.items()}

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        clips, reconstruction = outputs["video"], outputs["reconstruction"]
        of_frames = {"image": frames_of(clips), "reconstruction": frames_of(reconstruction)}
        values = self.metric.per_image(outputs | of_frames)
        return {name: jnp.mean(value.reshape(len(clips), -1), axis=1) for name, value in values.items()}

    def numbers(self, means: dict[str, float]) -> Numbers:
        return self.metric.numbers(means)


class OverTime(ImageMean):
    """PSNR by frame and over the temporal mean, and flicker: errors of the difference of successive frames."""

    higher_is_better: ClassVar = {"flicker_mse_01": False}

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "psnr_temporal_mean": "psnr of frames when each is replaced by the mean of the clip over time, by pixel",
            "psnr_gain_temporal_mean": "psnr - psnr_temporal_mean",
            "flicker_mse_01": "mean squared error of the differences of successive frames, pixels in [0, 1], "
            "reconstruction clipped, mean over clips",
            "motion_mse_01": "mean square of these differences in the originals",
            "flicker_over_motion": "flicker_mse_01 / motion_mse_01: 1 for a reconstruction that stands still",
            "psnr_first_frame": "psnr of the first frame of each clip, mean over clips",
            "psnr_last_frame": "psnr of the last frame of each clip, mean over clips",
            "psnr_worst_frame": "psnr of the frame, by its number in the clip, where the mean over clips is lowest",
        }

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        clips = outputs["video"].astype(jnp.float32) / 255
        made = jnp.clip((outputs["reconstruction"].astype(jnp.float32) + 1) / 2, 0, 1)
        mean = jnp.broadcast_to(jnp.mean(clips, axis=1, keepdims=True), clips.shape)
        motion, made_motion = (jnp.diff(x, axis=1) for x in (clips, made))
        still = motion.shape[1] == 0

        def mean_square(x: Float[Array, "batch _ height width channels"]) -> Float[Array, " batch"]:
            return jnp.zeros(len(x)) if still else jnp.mean(jnp.square(x), axis=(1, 2, 3, 4))

        of_frames = _psnr_of_frames(clips, made)
        return {
            "flicker_mse_01": mean_square(made_motion - motion),
            "motion_mse_01": mean_square(motion),
            "psnr": jnp.mean(of_frames, axis=1),
            "psnr_temporal_mean": jnp.mean(_psnr_of_frames(clips, mean), axis=1),
            **{f"frame_{frame}": of_frames[:, frame] for frame in range(clips.shape[1])},
        }

    def numbers(self, means: dict[str, float]) -> Numbers:
        # By their numbers: a compiled function returns names in the order of the alphabet.
        of_frames = [means[f"frame_{frame}"] for frame in range(sum(name.startswith("frame_") for name in means))]
        flicker, motion = means["flicker_mse_01"], means["motion_mse_01"]
        return {
            "psnr_temporal_mean": means["psnr_temporal_mean"],
            "psnr_gain_temporal_mean": means["psnr"] - means["psnr_temporal_mean"],
            "flicker_mse_01": flicker,
            "motion_mse_01": motion,
            "flicker_over_motion": flicker / motion if motion > 0 else None,
            "psnr_first_frame": of_frames[0],
            "psnr_last_frame": of_frames[-1],
            "psnr_worst_frame": min(of_frames),
        }


def clip_metrics(num_codes: int | tuple[int, ...]) -> tuple[Metric, ...]:
    """Return the metrics of an evaluation of a tokenizer of clips, in the order in which reports show them.

    Args:
      num_codes: As of :func:`vqjax.evaluation.tokenizer_metrics`.

    Example:
      >>> [type(metric).__name__ for metric in clip_metrics(num_codes=512)]
      ['ClipCount', 'OfFrames', 'OfFrames', 'OfFrames', 'OverTime', 'TokenLosses', 'CodeUsage']
    """
    of_frames = (OfFrames(metric) for metric in (MSE(), PSNR(), SSIM()))
    return ClipCount(), *of_frames, OverTime(), TokenLosses(), CodeUsage(num_codes, example="clip")


def _psnr_of_frames(
    x: Float[Array, "batch frames height width channels"], y: Float[Array, "batch frames height width channels"]
) -> Float[Array, "batch frames"]:
    return jnp.minimum(psnr(frames_of(x), frames_of(y)), PSNR_CAP).reshape(x.shape[:2])
