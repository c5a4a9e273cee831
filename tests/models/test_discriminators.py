"""Discriminators, beside the recorded outputs of the originals."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.arrays import gaussian
from helpers.goldens import assert_equal, channels_last, golden, kernel, patchgan_variables, weights
from vqjax import UserError
from vqjax.losses.adversarial import hinge_loss, r1_penalty, vanilla_loss
from vqjax.models.discriminators import PatchGAN, PatchGAN3D, StyleGANDiscriminator


@pytest.mark.full
@pytest.mark.parametrize("num_layers", [2, 3])
def test_patchgan_is_the_recorded_one(num_layers):
    arrays, facts = golden(f"patchgan_{num_layers}")
    variables, places = patchgan_variables(weights(arrays), num_layers)
    discriminator = PatchGAN(channels=facts["ndf"], num_layers=num_layers)
    real, fake = channels_last(arrays["real"]), channels_last(arrays["fake"])

    def judge(variables, images):
        logits, updates = discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, variables | updates

    of_real, after_real = judge(variables, real)
    of_fake, after = judge(after_real, fake)
    assert_equal(of_real, arrays["logits_real"][:, 0])
    assert_equal(of_fake, arrays["logits_fake"][:, 0])
    assert_equal(hinge_loss(of_real, of_fake), arrays["hinge_d"])
    assert_equal(vanilla_loss(of_real, of_fake), arrays["vanilla_d"])
    for layer in range(1, num_layers + 1):
        norm = f"after.main.{places[layer] + 1}"
        assert_equal(after["batch_stats"][f"norm_{layer}"]["mean"], arrays[f"{norm}.running_mean"])
        assert_equal(after["batch_stats"][f"norm_{layer}"]["var"], arrays[f"{norm}.running_var"])
    assert_equal(discriminator.apply(after, real, train=False), arrays["logits_real_eval"][:, 0])
    assert_equal(jax.grad(lambda x: -jnp.mean(judge(variables, x)[0]))(fake), channels_last(arrays["grad_fake"]))

    def loss(params):
        return hinge_loss(*(judge(variables | {"params": params}, x)[0] for x in (real, fake)))

    gradient = jax.grad(loss)(variables["params"])
    for layer, place in enumerate(places):
        expected = kernel(arrays[f"hinge_grad.main.{place}.weight"])
        assert_equal(gradient[f"conv_{layer}"]["kernel"], expected)


@pytest.mark.full
def test_the_discriminator_of_stylegan_is_the_recorded_one():
    arrays, facts = golden("stylegan_discriminator")
    original = weights(arrays)
    channels = tuple(facts["channels"])

    def conv(weight, bias=None):
        biases = {} if bias is None else {"bias": jnp.asarray(original[bias])}
        return {"kernel": kernel(original[weight])} | biases

    params = {
        "conv_in": conv("blocks.0.0.weight", "blocks.0.1.bias"),
        "conv_out": conv("final_conv.0.weight", "final_conv.1.bias"),
        "logit": conv("final_linear.1.weight", "final_linear.1.bias"),
    }
    for i in range(1, len(channels)):
        params[f"block_{i - 1}"] = {
            "conv_1": conv(f"blocks.{i}.conv1.0.weight", f"blocks.{i}.conv1.1.bias"),
            "conv_2": conv(f"blocks.{i}.conv2.1.weight", f"blocks.{i}.conv2.2.bias"),
            "skip": conv(f"blocks.{i}.skip.1.weight"),
        }
    # The original flattens channels first.
    dense = original["final_linear.0.weight"].reshape(channels[-1], channels[-1], 4, 4).transpose(2, 3, 1, 0)
    params["dense"] = {
        "kernel": jnp.asarray(dense.reshape(-1, channels[-1])),
        "bias": jnp.asarray(original["final_linear.0.bias"]),
    }
    discriminator, images = StyleGANDiscriminator(channels), channels_last(arrays["x"])

    def judge(params, images):
        return discriminator.apply({"params": params}, images)

    assert_equal(judge(params, images), arrays["logits"])
    assert_equal(jax.grad(lambda x: jnp.sum(judge(params, x)))(images), channels_last(arrays["grad_x"]))
    penalty, gradient = jax.value_and_grad(lambda params: r1_penalty(lambda x: judge(params, x), images))(params)
    assert_equal(penalty, arrays["r1"])
    assert_equal(gradient["conv_in"]["kernel"], kernel(arrays["r1_grad.blocks.0.0.weight"]))
    assert_equal(gradient["block_1"]["skip"]["kernel"], kernel(arrays["r1_grad.blocks.2.skip.1.weight"]))
    assert_equal(gradient["logit"]["kernel"], kernel(arrays["r1_grad.final_linear.1.weight"]))


@pytest.mark.parametrize(
    ("module", "count", "logits"),
    [(PatchGAN(), 2_765_633, (1, 30, 30)), (PatchGAN(num_layers=2), 663_361, (1, 62, 62))],
)
def test_patchgan_has_the_published_number_of_parameters(module, count, logits):
    images = jnp.zeros((1, 256, 256, 3))
    out, variables = jax.eval_shape(lambda key: module.init_with_output(key, images, train=False), jax.random.key(0))
    assert out.shape == logits
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_the_discriminator_of_stylegan_has_the_published_number_of_parameters():
    images = jnp.zeros((1, 256, 256, 3))
    variables = jax.eval_shape(StyleGANDiscriminator().init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 28_864_129


@pytest.mark.full
@pytest.mark.parametrize(("make", "sizes"), [(PatchGAN, (16, 16)), (PatchGAN3D, (3, 6, 8))])
def test_parts_of_a_batch_are_normalized_by_themselves(make, sizes):
    images = gaussian(4, *sizes, 3).at[2:].multiply(3.0)
    whole, parts = (make(channels=4, num_layers=1, statistics_groups=groups) for groups in (1, 2))
    variables = whole.init(jax.random.key(0), images, train=False)
    together, _ = parts.apply(variables, images, train=True, mutable=["batch_stats"])
    apart = [whole.apply(variables, part, train=True, mutable=["batch_stats"])[0] for part in jnp.split(images, 2)]
    np.testing.assert_allclose(together, jnp.concatenate(apart), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"statistics_groups must divide the batch of 3, got 2"):
        parts.apply(variables, images[:3], train=True, mutable=["batch_stats"])
    # Bug: so were the one image that a training run starts from, and the last batch of an evaluation.
    alone = parts.init(jax.random.key(0), images[:1], train=False)
    assert parts.apply(alone, images[:3], train=False).shape == whole.apply(alone, images[:3], train=False).shape


def convolved(layer, x, stride=1):
    """A 4x4x4 convolution with two places of padding in float64, by the windows of its input."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (2, 2), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4, 4), axis=(1, 2, 3))
    windows = windows[:, ::stride, ::stride, ::stride]
    return np.einsum("bthwcijk,ijkco->bthwo", windows, layer["kernel"]) + np.asarray(layer.get("bias", 0))


def test_the_patchgan_of_clips_convolves_time_and_space_and_takes_statistics_of_all_frames():
    clips, discriminator = gaussian(2, 5, 6, 8, 3), PatchGAN3D(channels=4, num_layers=1)
    variables = discriminator.init(jax.random.key(0), clips, train=False)
    logits, after = discriminator.apply(variables, clips, train=True, mutable=["batch_stats"])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def activated(x):
        return np.where(x > 0, x, 0.2 * x)

    x = convolved(params["conv_1"], activated(convolved(params["conv_0"], clips, stride=2)))
    mean, variance = x.mean((0, 1, 2, 3)), x.var((0, 1, 2, 3))
    normed = (x - mean) / np.sqrt(variance + 1e-5) * params["norm_1"]["scale"] + params["norm_1"]["bias"]
    assert_equal(logits, convolved(params["conv_2"], activated(normed))[..., 0])
    count = x[..., 0].size
    assert_equal(after["batch_stats"]["norm_1"]["mean"], 0.1 * mean)
    assert_equal(after["batch_stats"]["norm_1"]["var"], 0.9 + 0.1 * variance * count / (count - 1))


@pytest.mark.parametrize(
    ("module", "count", "logits"),
    [(PatchGAN3D(), 11_056_961, (1, 5, 19, 19)), (PatchGAN3D(num_layers=2), 2_650_945, (1, 7, 35, 35))],
)
def test_the_patchgan_of_clips_has_the_parameters_and_logits_of_tats(module, count, logits):
    """As its PyTorch module counts them, less the biases in front of norms."""
    clips = jnp.zeros((1, 16, 128, 128, 3))
    out, variables = jax.eval_shape(lambda key: module.init_with_output(key, clips, train=False), jax.random.key(0))
    assert out.shape == logits
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_statistics_of_clips_that_are_divided_over_devices_are_those_of_the_whole_batch():
    clips = gaussian(8, 2, 4, 4, 3) * jnp.arange(1.0, 9.0)[:, None, None, None, None]
    discriminator = PatchGAN3D(channels=4, num_layers=1)
    variables = discriminator.init(jax.random.key(0), clips, train=False)
    judge = jax.jit(lambda *inputs: discriminator.apply(*inputs, train=True, mutable=["batch_stats"]))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    divided = jax.device_put(clips, NamedSharding(mesh, P("data")))
    actual = judge(jax.device_put(variables, NamedSharding(mesh, P())), divided)
    chex.assert_trees_all_close(actual, judge(variables, clips), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_the_patchgan_of_clips_in_bfloat16_is_close_and_its_gradient_finite():
    clips = gaussian(2, 5, 6, 8, 3)
    exact, rounded = (PatchGAN3D(channels=4, num_layers=1, dtype=dtype) for dtype in (None, "bfloat16"))
    variables = exact.init(jax.random.key(0), clips, train=False)

    def judge(module, clips):
        return module.apply(variables, clips, train=True, mutable=["batch_stats"])[0]

    logits = judge(rounded, clips)
    assert logits.dtype == jnp.float32
    assert_equal(logits, np.asarray(judge(exact, clips)), tolerance=0.05)
    gradient = jax.grad(lambda clips: jnp.sum(jnp.square(judge(exact, clips))))(clips)
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0, axis=(0, 2, 3, 4)).all()


def test_one_frame_of_one_pixel_has_logits():
    create = PatchGAN3D(channels=4, num_layers=2).init_with_output
    logits, _ = jax.eval_shape(lambda key: create(key, jnp.ones((1, 1, 1, 1, 3)), train=True), jax.random.key(0))
    assert logits.shape == (1, 3, 3, 3)


@pytest.mark.usefixtures("as_users_run_it")
def test_the_patchgan_of_clips_refuses_images():
    for images, message in (
        (jnp.ones((2, 8, 8, 3)), r"must be \[batch, frames, height, width, channels\], got shape \(2, 8, 8, 3\)"),
        (jnp.ones((2, 1, 8, 8, 3), jnp.uint8), "must be floats in .* got uint8"),
    ):
        with pytest.raises(UserError, match=f"^`clips` {message}"):
            PatchGAN3D(channels=4).init(jax.random.key(0), images, train=False)


@pytest.mark.full
def test_a_lack_of_variety_is_visible_to_the_discriminator_of_stylegan():
    module, images = StyleGANDiscriminator((8, 8)), gaussian(4, 8, 8, 3)
    variables = module.init(jax.random.key(0), images)
    alone = module.apply(variables, images)[0]
    copies = module.apply(variables, jnp.tile(images[:1], (4, 1, 1, 1)))
    np.testing.assert_allclose(copies, copies[0], rtol=1e-5)
    assert abs(float(copies[0] - alone)) > 1e-4
    with pytest.raises(UserError, match=r"images must be 8 pixels high and wide for 2 entries in channels"):
        module.apply(variables, gaussian(4, 16, 16, 3))


@pytest.mark.full
def test_groups_of_images_are_as_large_as_the_batch_makes_them():
    """Bug: two groups of nine images, of up to four each by the original, are not equally large."""
    module = StyleGANDiscriminator((8, 8), group_size=4)
    variables, images = module.init(jax.random.key(0), gaussian(1, 8, 8, 3)), gaussian(9, 8, 8, 3)
    one_group = StyleGANDiscriminator((8, 8), group_size=9).apply(variables, images)
    np.testing.assert_allclose(module.apply(variables, images), one_group, rtol=1e-5)


def test_an_image_that_patchgan_has_no_patch_for_is_rejected():
    """Bug: there were no logits, whose mean is not a number."""
    module = PatchGAN(channels=4, num_layers=2)

    def logits(height, width):
        images = jnp.ones((1, height, width, 3))
        return jax.eval_shape(lambda key: module.init_with_output(key, images, train=True)[0], jax.random.key(0))

    assert logits(12, 12).shape == (1, 1, 1)
    with pytest.raises(UserError, match=r"images must be at least 12 pixels .* for num_layers=2, got 12 x 11"):
        logits(12, 11)


@pytest.mark.usefixtures("as_users_run_it")
def test_sizes_that_make_no_discriminator_are_rejected():
    for make, field, values, message in (
        (PatchGAN, "channels", (0, -1, 64.0, True, None), r"an integer in \[1, 8192\]"),
        (PatchGAN, "num_layers", (0, -1, 3.0, 10**9), r"an integer in \[1, 20\]"),
        (PatchGAN, "statistics_groups", (0, -1, 2.0, None), "a positive integer"),
        (PatchGAN, "dtype", ("nonsense", "int32"), "a floating-point dtype"),
        (PatchGAN3D, "channels", (0, 64.0), r"an integer in \[1, 8192\]"),
        (PatchGAN3D, "statistics_groups", (0, None), "a positive integer"),
        (StyleGANDiscriminator, "channels", ((), (8, 0), (8.0,), 8, None), r"one or more integers in \[1, 8192\]"),
        (StyleGANDiscriminator, "group_size", (0, -1, 4.0, None), "a positive integer"),
        (StyleGANDiscriminator, "dtype", ("nonsense", "int32"), "a floating-point dtype"),
    ):
        for value in values:
            with pytest.raises(UserError, match=rf"^{field} must be {message}.*, got {re.escape(repr(value))}"):
                make(**{field: value})
