"""Metrics of clips over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.evaluation import OverTime


def test_frames_are_told_apart_by_their_numbers():
    """Bug: a compiled function returns frame_10 before frame_9, so that the "last" frame was the tenth."""
    brightness = np.array([50, *range(10, 130, 10), 20], np.uint8)
    clip = np.broadcast_to(brightness[:, None, None, None], [1, len(brightness), 4, 4, 3])
    outputs = {"video": clip, "reconstruction": jnp.full(clip.shape, -1.0), "valid": np.array([True])}
    metric = OverTime()
    numbers = metric.compute(metric.update(metric.init(), jax.jit(metric.measure)(outputs)))
    for name, frame in (("first", 0), ("last", -1), ("worst", -2)):
        expected = -20 * np.log10(brightness[frame] / 255)
        assert numbers[f"psnr_{name}_frame"] == pytest.approx(expected, rel=1e-4), name
