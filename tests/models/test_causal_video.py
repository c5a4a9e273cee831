"""Encoder and decoder of clips that never look ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.arrays import gaussian
from vqjax import Tokenizer, UserError
from vqjax.models.causal_video import CausalVideoEncoder, inflated
from vqjax.models.registry import build_model, describe

SMALL = {"channels": 32, "multipliers": (1, 1), "num_res_blocks": 1, "latent_dim": 8, "code_dim": 4}
LOCAL = {"name": "causal_video", "time_scalings": 1, "norm": "position", "middle_attention": False} | SMALL
LOCAL |= {"multipliers": (1,), "patch_size": 2}
CODES = {"name": "vq", "num_codes": 32}
RESIDUAL = {"name": "residual_vq", "quantizer": CODES, "num_quantizers": 2}


def with_motion(variables):
    """Variables whose layers over time do something, as those of a trained model."""

    def moved(path, leaf):
        if any(name in jax.tree_util.keystr(path) for name in ("over_time", "halved", "doubled")):
            return leaf + 0.05 * gaussian(*leaf.shape)
        return leaf

    return jax.tree_util.tree_map_with_path(moved, variables)


@pytest.fixture(scope="module")
def tokenizer():
    model = build_model(LOCAL | {"time_scalings": 1}, CODES)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3, 16, 16, 3)))
    return Tokenizer(model, with_motion(variables), config={}, step=0)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (1, 7, 64, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def whole(tokenizer, clips):
    indices = tokenizer.encode(clips)
    assert len(np.unique(indices)) > 8
    return indices, tokenizer.decode(indices)


@pytest.mark.parametrize("frame", [1, 2, 5, 6])
def test_a_frame_leaves_the_past_as_it_is(tokenizer, clips, whole, frame):
    indices, frames = whole
    changed = clips.copy()
    changed[:, frame] = 255 - changed[:, frame]
    found = np.asarray(tokenizer.encode(changed))
    # Frames 1 and 2 are the group behind the first frame, and so on: a group is decoded as a whole.
    group = (frame + 1) // 2
    np.testing.assert_array_equal(found[:, :group], indices[:, :group])
    assert (found[:, group] != indices[:, group]).any()
    before = 1 + 2 * (group - 1)
    np.testing.assert_array_equal(tokenizer.decode(found)[:, :before], frames[:, :before])


@pytest.mark.full
@pytest.mark.parametrize("cuts", [(3, 7), (1, 5, 7)])
def test_a_clip_that_passes_in_parts_has_the_same_indices(tokenizer, clips, whole, cuts):
    parts = [clips[:, start:end] for start, end in zip((0, *cuts), cuts, strict=False)]
    found = np.concatenate(list(tokenizer.encode_parts(parts)), axis=1)
    np.testing.assert_array_equal(found, whole[0])


# The margin of a tile is 10 of these 32 x 28 positions: in both directions some tiles do not touch the edges.
@pytest.mark.parametrize("tile", [None, 4, pytest.param(5, marks=pytest.mark.full)])
def test_a_clip_that_is_decoded_in_parts_has_the_same_frames(tokenizer, whole, tile):
    indices, frames = whole
    parts = list(tokenizer.decode_parts(indices, tile=tile))
    assert [part.shape[1] for part in parts] == [1, 2, 2, 2]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), frames, atol=1e-5)


def test_what_lies_outside_of_the_margin_does_not_matter(tokenizer):
    decoder, variables = tokenizer.model.decoder, {"params": tokenizer.variables["params"]["decoder"]}
    codes = np.asarray(gaussian(1, 1, 30, 1, 4))
    changed = codes.copy()
    changed[:, :, : 15 - decoder.margin] += 1
    assert decoder.margin == 10
    decode = jax.jit(decoder.apply)
    np.testing.assert_array_equal(decode(variables, changed)[:, :, 30:], decode(variables, codes)[:, :, 30:])
    changed[:, :, 15 - decoder.margin] += 1
    assert np.abs(decode(variables, changed) - decode(variables, codes))[:, :, 30:].max() > 0


@pytest.mark.full
@pytest.mark.parametrize("quantizer", [CODES, pytest.param(RESIDUAL, marks=pytest.mark.full)])
def test_parts_agree_where_layers_see_whole_frames(quantizer):
    model = build_model({"name": "causal_video", "time_scalings": 1} | SMALL, quantizer)
    clips = np.random.default_rng(1).integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    variables = with_motion(jax.jit(model.init)(jax.random.key(0), jnp.zeros(clips.shape)))
    tokenizer = Tokenizer(model, variables, config={}, step=0)
    indices = np.concatenate(list(tokenizer.encode_parts([clips[:, :3], clips[:, 3:]])), axis=1)
    assert np.mean(indices == tokenizer.encode(clips)) > 0.99
    parts = np.concatenate(list(tokenizer.decode_parts(indices)), axis=1)
    np.testing.assert_allclose(parts, tokenizer.decode(indices), atol=1e-4)


def test_a_program_of_it_runs_without_the_package(tokenizer, whole):
    """Bug: the size of a batch was asked for, which a program does not know."""
    indices, frames = whole
    program = jax.export.deserialize(tokenizer.export("decode", indices.shape[1:], platforms=["cpu"]))
    np.testing.assert_allclose(program.call(np.repeat(indices, 2, axis=0))[1], frames[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 16, 16, 3), (1, 0, 16, 16, 3)])
def test_no_clips_are_refused(tokenizer, shape):
    with pytest.raises(UserError, match="must be at least one clip of one frame"):
        tokenizer.encode(np.zeros(shape, np.uint8))


def test_indices_of_another_shape_are_refused(tokenizer):
    """Bug: they ended in a ValueError of Python."""
    with pytest.raises(UserError, match="`indices` must fit the model"):
        list(tokenizer.decode_parts(np.zeros((1, 2, 5), np.int32)))


def test_attention_is_at_the_heights_of_the_feature_maps():
    """Bug: the squares of pixels were left out of the count, and levels of a quarter of the height had attention."""
    encoder = CausalVideoEncoder(**SMALL, patch_size=4, resolution=128, attention_resolutions=(32,))
    assert [encoder.has_attention(level) for level in (0, 1)] == [True, False]
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.ones((1, 5, 128, 128, 3)))["params"]
    assert [name for name in shapes if name.endswith("_attention_0")] == ["level_0_attention_0"]


def test_parts_of_frames_need_norms_of_a_position():
    model = build_model(LOCAL | {"norm": "group"}, CODES)
    tokenizer = Tokenizer(model, {}, config={}, step=0)
    with pytest.raises(UserError, match=r"tile must be None for a decoder .* config.model.norm=position"):
        list(tokenizer.decode_parts(np.zeros((1, 2, 4, 4), np.int32), tile=2))


def test_models_that_look_ahead_refuse_parts():
    model = build_model({"name": "sonnet", "width": 8}, CODES)
    with pytest.raises(UserError, match=r"model must be one that never looks ahead .* got one with SonnetDecoder"):
        list(Tokenizer(model, {}, config={}, step=0).encode_parts([]))
    # Bug: codes of scales that span the clip were taken for those of groups of frames.
    scales = {"name": "multi_scale_vq", "quantizer": CODES, "scales": (1, 2, (3, 4, 4)), "spatial_dims": 3}
    model = build_model(LOCAL, scales)
    with pytest.raises(UserError, match=r"must have a quantizer of frames .* got MultiScaleVQ of spatial_dims=3"):
        list(Tokenizer(model, {}, config={}, step=0).encode_parts([]))


@pytest.mark.full
def test_an_image_tokenizer_makes_one_of_clips():
    image_model = build_model({"name": "vqgan"} | SMALL, CODES)
    model = build_model({"name": "causal_video", "time_scalings": 1} | SMALL, CODES)
    images = gaussian(2, 16, 16, 3)
    of_images = jax.jit(image_model.init)(jax.random.key(0), images)
    started = jax.jit(model.init)(jax.random.key(1), images[:, None])
    variables = inflated(started, of_images)
    expected = image_model.apply(of_images, images, method="reconstruct")
    for frames in (1, 5):
        clips = jnp.repeat(images[:, None], frames, axis=1)
        found = jax.jit(lambda x: model.apply(variables, x, method="reconstruct"))(clips)
        np.testing.assert_allclose(found, jnp.repeat(expected[:, None], frames, axis=1), atol=1e-5)


def test_an_image_tokenizer_of_other_layers_is_refused():
    with pytest.raises(UserError, match=r"the image tokenizer must have the layers .* got params/conv of shape \(3,\)"):
        inflated({"params": {"conv": np.zeros(2)}}, {"params": {"conv": np.zeros(3)}})


def test_clips_of_other_lengths_are_refused():
    encoder = CausalVideoEncoder(channels=32, multipliers=(1, 1), time_scalings=1)
    for frames in (2, 4):
        with pytest.raises(UserError, match=rf"1 more than a multiple of 2 frames for time_scalings=1, got {frames};"):
            jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, frames, 16, 16, 3)))


def test_its_config_describes_it():
    groups = describe(build_model(LOCAL, CODES))
    assert groups["model"]["name"] == "causal_video"
    assert build_model(**groups) == build_model(LOCAL, CODES)


@pytest.mark.full
def test_bfloat16_is_close_and_returns_float32(tokenizer):
    encoder, variables = tokenizer.model.encoder, {"params": tokenizer.variables["params"]["encoder"]}
    clips = gaussian(1, 3, 16, 16, 3)
    exact, rounded = encoder.apply(variables, clips), encoder.clone(dtype="bfloat16").apply(variables, clips)
    assert rounded.dtype == jnp.float32
    assert jnp.sqrt(jnp.mean((exact - rounded) ** 2)) < 0.03 * jnp.std(exact)
