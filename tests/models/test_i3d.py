"""I3D: shapes, size and what it refuses; its numbers are compared in tests/parity/test_i3d.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError
from vqjax.models.i3d import I3D


def of_shape(*shape, dtype=jnp.float32):
    return jax.eval_shape(I3D().init_with_output, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize("frames", [9, 16, 17])
def test_a_clip_of_nine_frames_or_more_is_two_vectors(frames):
    features, _ = of_shape(2, frames, 224, 224, 3)
    assert (features.logits.shape, features.pool.shape) == ((2, 400), (2, 1024))
    assert features.logits.dtype == features.pool.dtype == jnp.float32


def test_the_network_has_the_size_of_the_original():
    """57 convolutions with a scale and a shift each, and 400 classes: 12,697,264 parameters in pytorch-i3d."""
    params = of_shape(1, 9, 224, 224, 3)[1]["params"]
    sizes = {path[-1].key: [] for path, _ in jax.tree.leaves_with_path(params)}
    for path, leaf in jax.tree.leaves_with_path(params):
        sizes[path[-1].key].append(leaf.size)
    assert len(sizes["kernel"]) == 58
    assert sum(sizes["kernel"]) + 2 * sum(sizes["bias"]) - 400 == 12_697_264


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 8, 224, 224, 3), jnp.float32, r"with at least 9 frames, got shape \(2, 8, 224, 224, 3\); resize frames"),
        ((2, 16, 128, 128, 3), jnp.float32, r"must be \[batch, frames, 224, 224, 3\] .* got shape \(2, 16, 128"),
        ((2, 16, 224, 224, 1), jnp.float32, r"got shape \(2, 16, 224, 224, 1\)"),
        ((2, 224, 224, 3), jnp.float32, r"got shape \(2, 224, 224, 3\)"),
        ((2, 16, 224, 224, 3), jnp.uint8, r"must be floats in \[-1, 1\], got uint8; scale uint8"),
    ],
)
def test_what_is_no_clip_for_it_is_refused_in_one_line(as_users_run_it, shape, dtype, message):
    with pytest.raises(UserError, match=message):
        of_shape(*shape, dtype=dtype)


@pytest.mark.full
def test_features_do_not_depend_on_the_batch_and_time_has_an_order():
    clip = gaussian(9 * 224 * 224, 3).reshape(1, 9, 224, 224, 3)
    clips = jnp.concatenate([clip, clip[:, ::-1]])
    variables = jax.jit(I3D().init)(jax.random.key(0), clips)
    apply = jax.jit(I3D().apply)
    forward, both = apply(variables, clip), apply(variables, clips)
    np.testing.assert_allclose(both.logits[:1], forward.logits, rtol=1e-4, atol=1e-6)
    assert np.abs(both.logits[1] - both.logits[0]).max() > 1e-2 * np.abs(both.logits).max()
