"""Encoder and decoder of the TimeSformer, beside attention over time and space in float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import UserError
from vqjax.models.timesformer import TimeSformerDecoder, TimeSformerEncoder

SMALL = {"patch_size": 2, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 12}
FRAMES, ROWS, COLUMNS = 3, 2, 4
CLIPS = gaussian(2, FRAMES, 2 * ROWS, 2 * COLUMNS, 3)
CODES = gaussian(2, FRAMES, ROWS, COLUMNS, 5)


def randomized(module, x):
    """Variables without the zeros that layers start with."""
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(scale=0.3, size=leaf.shape), jnp.float32), variables)


def changed(variables, factor, *path):
    """Variables with those at a path of the transformer times a factor."""

    def at(found, leaf):
        return factor * leaf if [key.key for key in found][2:][: len(path)] == list(path) else leaf

    return jax.tree.map_with_path(at, variables)


def without_positions(variables):
    return changed(changed(variables, 0, "space"), 0, "time")


def encode(variables, clips, **options):
    module = TimeSformerEncoder(**SMALL | options, code_dim=5)
    return np.asarray(jax.jit(module.apply)(variables, clips))


@pytest.fixture(scope="module")
def variables():
    return randomized(TimeSformerEncoder(**SMALL, code_dim=5), CLIPS)


def linear(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def norm(layer, x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def attention(layer, x):
    """Of the tokens of one sequence, head by head."""
    query, key, value = np.split(linear(layer["qkv"], x), 3, axis=-1)
    heads = []
    for head in np.split(np.arange(x.shape[-1]), SMALL["heads"]):
        weights = np.exp(query[:, head] @ key[:, head].T / math.sqrt(len(head)))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, head])
    return linear(layer["out"], np.concatenate(heads, axis=-1))


def encoded(params, clip):
    """The codes of one clip, by loops over places and frames."""
    kernel = params["to_tokens"]["kernel"]
    patches = clip.reshape(FRAMES, ROWS, 2, COLUMNS, 2, 3).swapaxes(2, 3).reshape(FRAMES, ROWS, COLUMNS, -1)
    x = patches @ kernel.reshape(-1, kernel.shape[-1]) + params["to_tokens"]["bias"]
    transformer = params["transformer"]
    x = x + transformer["space"] + transformer["time"][:, None, None]
    block = transformer["block_0"]
    over_time = np.stack(
        [
            [attention(block["time"], norm(block["time_norm"], x[:, row, column])) for column in range(COLUMNS)]
            for row in range(ROWS)
        ]
    )
    x = x + linear(block["from_time"], over_time.transpose(2, 0, 1, 3))
    of_frames = [attention(block["space"], norm(block["space_norm"], frame.reshape(ROWS * COLUMNS, -1))) for frame in x]
    x = x + np.reshape(of_frames, x.shape)
    hidden = linear(block["mlp_1"], norm(block["mlp_norm"], x))
    x = x + linear(block["mlp_2"], hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2)
    return linear(params["to_codes"], norm(transformer["norm"], x))


def test_a_block_is_attention_over_time_then_over_space(variables):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    expected = [encoded(params, clip) for clip in np.asarray(CLIPS, np.float64)]
    np.testing.assert_allclose(encode(variables, CLIPS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("silent", "reached"),
    [
        (("from_time",), np.s_[1, :, :]),
        (("space", "out"), np.s_[:, 1, 2]),
        ((), np.s_[:, :, :]),
    ],
)
def test_a_patch_reaches_its_place_at_all_times_and_then_all_places(variables, silent, reached):
    variables = without_positions(variables)
    if silent:
        variables = changed(variables, 0, "block_0", *silent)
    other = CLIPS.at[0, 1, 2:4, 4:6].add(1.0)
    differs = np.any(encode(variables, other) != encode(variables, CLIPS), axis=-1)
    expected = np.zeros((FRAMES, ROWS, COLUMNS), bool)
    expected[reached] = True
    np.testing.assert_array_equal(differs[0], expected)
    assert not differs[1].any()


@pytest.mark.full
def test_a_new_encoder_takes_each_frame_by_itself():
    variables = TimeSformerEncoder(**SMALL, code_dim=5).init(jax.random.key(0), CLIPS)
    differs = np.any(encode(variables, CLIPS.at[:, 1].add(1.0)) != encode(variables, CLIPS), axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(differs, [False, True, False])


def test_only_positions_tell_frames_and_places_apart(variables):
    same = without_positions(variables)
    codes, told_apart = encode(same, CLIPS), encode(variables, CLIPS)
    for axis, width in ((1, 1), (2, 2)):
        turned = jnp.roll(CLIPS, width, axis)
        np.testing.assert_allclose(encode(same, turned), np.roll(codes, 1, axis), atol=1e-5)
        assert np.abs(encode(variables, turned) - np.roll(told_apart, 1, axis)).max() > 0.01


@pytest.mark.full
def test_a_patch_is_made_from_its_own_code_by_the_last_layer():
    module = TimeSformerDecoder(**SMALL)
    variables = randomized(module, CODES)
    clips = module.apply(variables, CODES)
    assert clips.shape == CLIPS.shape
    features = module.apply(variables, CODES, method="features")
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(module.apply(variables, features, method="to_images"), clips)
    other = module.apply(variables, features.at[0, 1, 0, 2].add(1.0), method="to_images")
    expected = np.zeros(CLIPS.shape[:-1], bool)
    expected[0, 1, 0:2, 4:6] = True
    np.testing.assert_array_equal(np.any(other != clips, axis=-1), expected)
    assert variables["params"]["conv_out"]["kernel"].shape == (8, 2, 2, 3)


@pytest.mark.full
@pytest.mark.parametrize(("make", "x"), [(TimeSformerEncoder, CLIPS), (TimeSformerDecoder, CODES)])
def test_recomputed_blocks_have_the_same_gradient(make, x):
    variables = randomized(make(**SMALL), x)

    def gradient(remat):
        module = make(**SMALL, remat=remat)
        return jax.jit(jax.grad(lambda variables: jnp.sum(jnp.square(module.apply(variables, x)))))(variables)

    for first, second in zip(*(jax.tree.leaves(gradient(remat)) for remat in (False, True)), strict=True):
        assert np.isfinite(first).all()
        assert np.any(first != 0)
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(("make", "x"), [(TimeSformerEncoder, CLIPS), (TimeSformerDecoder, CODES)])
def test_bfloat16_is_close_and_its_output_in_float32(make, x):
    variables = randomized(make(**SMALL), x)
    exact, rounded = (jax.jit(make(**SMALL, dtype=dtype).apply)(variables, x) for dtype in (None, "bfloat16"))
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(rounded - exact))) < 0.05 * float(jnp.max(jnp.abs(exact)))


@pytest.mark.usefixtures("as_users_run_it")
def test_clips_that_do_not_fit_are_rejected(variables):
    module = TimeSformerEncoder(**SMALL, code_dim=5)
    for clips, message in (
        (CLIPS[:, :2], r"must have 3 frames of 2 x 4 patches, .*, got 2 of 2 x 4; cut or resize them"),
        (CLIPS[:, :, :, :6], r"must have 3 frames of 2 x 4 patches, .*, got 3 of 2 x 3; cut or resize them"),
        (CLIPS[:, :, :3], r"must have a height and width that patch_size=2 divides, got 3 x 8; resize or crop them"),
        (CLIPS[0], r"must be \[batch, frames, height, width, channels\], got shape \(3, 4, 8, 3\); add the missing"),
        (jnp.zeros(CLIPS.shape, jnp.uint8), "must be floats in .* got uint8; scale"),
    ):
        with pytest.raises(UserError, match=f"^`clips` {message}"):
            module.apply(variables, clips)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("make", [TimeSformerEncoder, TimeSformerDecoder])
def test_sizes_that_make_no_model_are_rejected(make):
    for field in ("patch_size", "dim", "depth", "heads", "mlp_dim"):
        for value in (0, -1, 8.0, True, "8", None, 10**9):
            with pytest.raises(UserError, match=rf"^{field} must be an integer in \[1, 8192\], got {value!r}"):
                make(**{field: value})
    for field, value in (("remat", "False"), ("dtype", "nonsense")):
        with pytest.raises(UserError, match=rf"^{field} must be .*, got {value!r}"):
            make(**{field: value})
    with pytest.raises(UserError, match=r"^dim must be a multiple of heads=3, got 16"):
        make(dim=16, heads=3)


@pytest.mark.usefixtures("as_users_run_it")
def test_sizes_of_codes_and_clips_are_checked():
    with pytest.raises(UserError, match=r"^code_dim must be an integer in \[1, 8192\], got 0"):
        TimeSformerEncoder(code_dim=0)
    with pytest.raises(UserError, match=r"^image_channels must be an integer in \[1, 8192\], got -1"):
        TimeSformerDecoder(image_channels=-1)
