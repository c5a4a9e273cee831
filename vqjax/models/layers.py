"""Strided convolutions without dilation, and a function that applies a module to a batch in parts.

The gradient of a strided convolution, and a transposed convolution itself, dilate their input with zeros, which XLA
runs slowly on CPUs. Folding each 2x2 block of pixels into channels computes the same function, with the same
parameters, as a plain 2x2 convolution.
"""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.errors import UserError
from vqjax.functional.sharding import with_automatic_axes
from vqjax.functional.target import target
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import is_count, require, require_count, require_counts

Images = Float[Array, "batch _ _ _"]
"""Images or feature maps, [batch, height, width, channels]."""

Clips = Float[Array, "batch _ _ _ _"]
"""Clips of video, or their feature maps, [batch, frames, height, width, channels]."""

LARGEST_DIM = 2**13
"""Largest number of features that models accept."""

NORM_GROUPS = 32
"""Groups of group norms."""


def check_images(images: Images) -> None:
    """Refuse what is not a batch of images of a floating-point dtype, which layers would convert without a word.

    Args:
      images: The argument of an encoder or discriminator.

    Raises:
      UserError: It has another dtype or another number of axes.
    """
    _check_floats("images", images)
    if images.ndim != 4:
        advice = "add the missing axes, or pass whole images"
        if images.ndim == 5:
            advice = "pass the frames of clips as images, or take a network for clips"
        raise UserError(f"`images` must be [batch, height, width, channels], got shape {images.shape}; {advice}.")


def check_clips(clips: Clips) -> None:
    """Refuse what is not a batch of clips of a floating-point dtype, which layers would convert without a word.

    Args:
      clips: The argument of an encoder or discriminator of clips.

    Raises:
      UserError: It has another dtype or another number of axes.
    """
    _check_floats("clips", clips)
    if clips.ndim != 5:
        raise UserError(
            f"`clips` must be [batch, frames, height, width, channels], got shape {clips.shape}; add the missing axes, "
            "or pass whole clips."
        )


def _check_floats(name: str, pixels: Images | Clips) -> None:
    """Refuse pixels of another dtype."""
    found = getattr(pixels, "dtype", type(pixels).__name__)
    if not (hasattr(pixels, "dtype") and jnp.issubdtype(pixels.dtype, jnp.floating)):
        raise UserError(f"`{name}` must be floats in [-1, 1], got {found}; scale uint8 with x / 127.5 - 1.")


def check_patches(name: str, size: tuple[int, ...], patch_size: int) -> None:
    """Refuse sizes that patches do not cover.

    Args:
      name: What has the size, in the message.
      size: Its height and width in pixels.
      patch_size: Height and width of a patch.

    Raises:
      UserError: There would be a rest.
    """
    height, width = size
    if height % patch_size or width % patch_size:
        raise UserError(
            f"{name} must have a height and width that patch_size={patch_size} divides, got {height} x {width}; resize "
            "or crop them."
        )


def check_dtype(dtype: Any) -> None:
    """Refuse what is not a floating-point dtype, in the argument ``dtype`` of a module.

    Args:
      dtype: A dtype or its name; None is the dtype of the input.

    Raises:
      UserError: It is no dtype, or one of integers.
    """
    known = dtype is None
    with contextlib.suppress(TypeError):
        known = known or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    require(known, "dtype", dtype, "a floating-point dtype such as 'bfloat16', or None")


def check_levels(module: nn.Module) -> None:
    """Refuse channels, multipliers and numbers of residual blocks that make no autoencoder with group norms.

    Args:
      module: An encoder or decoder of levels.

    Raises:
      UserError: One of them is out of range.
    """
    require_count("channels", module.channels, largest=LARGEST_DIM)
    expected = f"a multiple of {NORM_GROUPS}, the groups of the norms"
    require(module.channels % NORM_GROUPS == 0, "channels", module.channels, expected)
    require_counts("multipliers", module.multipliers, 64, "pass one for each level")
    require_count("num_res_blocks", module.num_res_blocks, largest=100)


def group_norm(name: str) -> nn.Module:
    """Return a group norm that computes in float32.

    Args:
      name: Name of the module.
    """
    return _GroupNorm(name=name)


class _GroupNorm(nn.Module):
    """Parameters of a norm that is traced once for each shape: it was a fifth of the tracing of a VQGAN."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch *grid channels"]) -> Float[Array, "batch *grid channels"]:
        initial = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        params = {name: self.param(name, start, x.shape[-1:], jnp.float32) for name, start in initial.items()}
        return _group_normalized(params, x)


@jax.jit
def _group_normalized(
    params: dict[str, Float[Array, " channels"]], x: Float[Array, "batch *grid channels"]
) -> Float[Array, "batch *grid channels"]:
    # The fast variance is off by a percent if the mean is large.
    norm = nn.GroupNorm(NORM_GROUPS, use_fast_variance=False, dtype=jnp.float32, parent=None)
    return norm.apply({"params": params}, x)


class DownsamplingConv(nn.Module):
    """A 4x4 or 3x3 convolution of stride 2 with one pixel of padding: halves height and width.

    The parameters are those of ``nn.Conv(features, (4, 4), strides=2, padding=1)``.

    Attributes:
      features: Number of output channels.
      dtype: Dtype of the computation; by default that of input and parameters.
      kernel_size: 4, or 3.
      use_bias: Whether a bias is added.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = DownsamplingConv(features=5)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 4, 4, 5), (4, 4, 3, 5))
    """

    features: int
    dtype: DTypeLike | None = None
    kernel_size: Literal[3, 4] = 4
    use_bias: bool = True

    @automatic_axes
    @nn.compact
    def __call__(self, x: Images) -> Images:
        _check_rank(x)
        _, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise UserError(
                f"x must have an even height and width, got {height} x {width}; use images whose sides stay even in "
                "every strided convolution."
            )
        kernel = _kernel(self, channels, self.kernel_size)
        bias = _bias(self) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        # The taps that a 3x3 kernel lacks are zero.
        lacking = (0, 4 - self.kernel_size)
        kernel = jnp.pad(kernel, (lacking, lacking, (0, 0), (0, 0)))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        folded = kernel.reshape(2, 2, 2, 2, channels, self.features).transpose(0, 2, 1, 3, 4, 5)
        folded = folded.reshape(2, 2, 4 * channels, self.features)
        y = _convolve(space_to_depth(padded), folded)
        return y if bias is None else y + bias[None, None, None]


class UpsamplingConv(nn.Module):
    """A 4x4 transposed convolution of stride 2: doubles height and width.

    The parameters are those of ``nn.ConvTranspose(features, (4, 4), strides=(2, 2), padding="SAME")``, and the
    function is that of PyTorch's ``ConvTranspose2d(..., 4, stride=2, padding=1)`` with the kernel mirrored.

    Attributes:
      features: Number of output channels.
      dtype: Dtype of the computation; by default that of input and parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = UpsamplingConv(features=5)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 8, 8, 5), (4, 4, 3, 5))
    """

    features: int
    dtype: DTypeLike | None = None

    @automatic_axes
    @nn.compact
    def __call__(self, x: Images) -> Images:
        _check_rank(x)
        channels = x.shape[-1]
        x, kernel, bias = promote_dtype(x, _kernel(self, channels, 4), _bias(self), dtype=self.dtype)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # Output pixel 2i + p (phase p is 0 or 1) depends on input pixels i - 1 + p and i + p, through kernel taps p
        # and 2 + p.
        folded = kernel.reshape(2, 2, 2, 2, channels, self.features).transpose(0, 2, 4, 1, 3, 5)
        folded = folded.reshape(2, 2, channels, 4 * self.features)
        phases = _convolve(padded, folded)
        batch, rows, columns, _ = phases.shape
        height, width = rows - 1, columns - 1
        phases = phases.reshape(batch, rows, columns, 2, 2, self.features)
        rows_of_phase = [phases[:, p : p + height, :, p] for p in (0, 1)]
        pixels = [[row[:, :, p : p + width, p] for p in (0, 1)] for row in rows_of_phase]
        y = jnp.stack([jnp.stack(row, axis=3) for row in pixels], axis=2)
        return y.reshape(batch, 2 * height, 2 * width, self.features) + bias[None, None, None]


def pointwise_conv(features: int, **options: Any) -> nn.Conv:
    """Return a 1x1 convolution of stride 1 that is computed as a product of matrices.

    Its gradients take XLA half of the time on CPUs.

    Args:
      features: Number of output channels.
      **options: Further arguments of ``nn.Conv``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, variables = pointwise_conv(5).init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 4, 4, 5), (1, 1, 3, 5))
    """
    return nn.Conv(features, (1, 1), conv_general_dilated=_product, **options)


def _product(images: Images, kernel: Float[Array, "1 1 channels features"], *_: Any, **options: Any) -> Images:
    return rows_product(images, kernel[0, 0], options["precision"])


def clips_conv(features: int, kernel_size: tuple[int, int, int], **options: Any) -> nn.Conv:
    """Return a convolution over time and space that is computed as one of images on CPUs.

    XLA takes up to ten times as long for three axes as for two there, and a hundred times for the gradient of what
    strides.

    Args:
      features: Number of output channels.
      kernel_size: Frames, rows and columns of the kernel.
      **options: Further arguments of ``nn.Conv``, but for dilations and groups.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = clips_conv(5, (4, 3, 3), strides=2)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 6, 6, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 4, 3, 3, 5), (4, 3, 3, 3, 5))
    """
    return nn.Conv(features, kernel_size, conv_general_dilated=_convolve_clips, **options)


def _convolve_clips(
    clips: Clips,
    kernel: Float[Array, "taps rows columns channels features"],
    strides: tuple[int, int, int],
    padding: str | Sequence[tuple[int, int]],
    *,
    precision: jax.lax.PrecisionLike,
    **options: Any,
) -> Clips:
    if target().platform != "cpu":
        return jax.lax.conv_general_dilated(clips, kernel, strides, padding, precision=precision, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(clips.shape[1:-1], kernel.shape[:3], strides, padding)
    return _convolve_frames(clips, kernel, strides, padding, precision)


@with_automatic_axes(like="clips")
def _convolve_frames(
    clips: Clips,
    kernel: Float[Array, "taps rows columns channels features"],
    strides: tuple[int, int, int],
    padding: Sequence[tuple[int, int]],
    precision: jax.lax.PrecisionLike,
) -> Clips:
    """Convolution whose taps over time are channels of one image for each frame of the result."""
    taps, rows, columns, channels, features = kernel.shape
    # XLA pads a gradient with respect to a kernel by more than one place at a twentieth of the speed.
    padded = jnp.pad(clips, ((0, 0), *padding, (0, 0)))
    last = padded.shape[1] - taps
    seen = [padded[:, tap : tap + last + 1 : strides[0]] for tap in range(taps)]
    images = jnp.concatenate(seen, axis=-1)
    batch, frames = images.shape[:2]
    y = jax.lax.conv_general_dilated(
        images.reshape(batch * frames, *images.shape[2:]),
        jnp.moveaxis(kernel, 0, 2).reshape(rows, columns, taps * channels, features),
        strides[1:],
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return y.reshape(batch, frames, *y.shape[1:])


def dense(features: int, **options: Any) -> nn.Dense:
    """Return a linear layer that multiplies the rows of all leading axes as one matrix.

    The gradient of a kernel with several leading axes copies what it sums over on CPUs, a quarter of the time of a
    transformer's training step.

    Args:
      features: Number of output features.
      **options: Further arguments of ``nn.Dense``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> y, variables = dense(5).init_with_output(jax.random.key(0), jnp.ones((2, 4, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((2, 4, 5), (3, 5))
    """
    return nn.Dense(features, dot_general=_dot_general, **options)


def _dot_general(
    x: Float[Array, "*axes channels"], kernel: Float[Array, "channels features"], *_: Any, **options: Any
) -> Float[Array, "*axes features"]:
    return rows_product(x, kernel, options["precision"])


@with_automatic_axes(like="x")
def rows_product(
    x: Float[Array, "*axes channels"],
    kernel: Float[Array, "channels features"],
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*axes features"]:
    """Multiply the rows of all leading axes by a matrix; on CPUs as one matrix.

    Args:
      x: Rows.
      kernel: The matrix.
      precision: See ``jax.lax.dot_general``.

    Example:
      >>> rows_product(jnp.ones((2, 4, 3)), jnp.ones((3, 5))).shape
      (2, 4, 5)
    """
    if target().platform != "cpu":
        # Elsewhere it costs nothing not to, and axes such as that of a sequence may be divided over devices.
        return jnp.matmul(x, kernel, precision=precision)
    product = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def _check_rank(x: Images) -> None:
    if x.ndim != 4:
        raise UserError(f"`x` must be [batch, height, width, channels], got shape {x.shape}; add the missing axes.")


def _kernel(module: nn.Module, channels: int, size: int) -> Float[Array, "size size channels features"]:
    return module.param("kernel", nn.initializers.lecun_normal(), (size, size, channels, module.features), jnp.float32)


def _bias(module: nn.Module) -> Float[Array, " features"]:
    return module.param("bias", nn.initializers.zeros, (module.features,), jnp.float32)


def _convolve(x: Images, kernel: Float[Array, "rows columns channels features"]) -> Images:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def space_to_depth(x: Images, size: int = 2) -> Images:
    """Move each square of pixels into the channels of one place.

    Args:
      x: Images whose height and width ``size`` divides.
      size: Side of a square.

    Example:
      >>> space_to_depth(jnp.zeros((1, 8, 6, 3))).shape
      (1, 4, 3, 12)
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size**2 * channels)


def apply_in_parts(
    module: nn.Module,
    batch: Float[Array, "batch ..."],
    *,
    microbatches: int = 1,
    train: bool | None = None,
    method: str = "__call__",
) -> Float[Array, "batch ..."]:
    """Apply a module to a batch in ``microbatches`` equal parts, one after another, to save memory.

    Only the output of each part is kept; the backward pass recomputes everything else. Values and gradients are those
    of the whole batch up to the order of summation, so what follows the module, such as a codebook's update, sees one
    batch.

    Args:
      module: Module that treats every row of the batch independently; batch normalization sees one part at a time.
      batch: Rows of any shape.
      microbatches: Number of parts, a divisor of the number of rows.
      train: Passed on if the method has an argument ``train``, and to be given then except in ``init``.
      method: Method of the module.

    Returns:
      The module's output for the whole batch.

    Raises:
      UserError: ``microbatches`` does not divide the rows, or the module takes ``train``, and it is not given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> class Halves(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return apply_in_parts(nn.Dense(3), x, microbatches=2)
      >>> Halves().init_with_output(jax.random.key(0), jnp.ones((4, 5)))[0].shape
      (4, 3)
    """
    rows = batch.shape[0]
    divides = is_count(microbatches) and (microbatches == 1 or rows % microbatches == 0)
    require(divides, "microbatches", microbatches, f"a divisor of {rows}, the number of rows")
    options = {}
    if "train" in inspect.signature(getattr(module, method)).parameters:
        if train is None and not module.is_initializing():
            name = type(module).__name__
            raise UserError(f"train must be True or False for {name}, whose call takes it, got None; say which.")
        options["train"] = bool(train)
    # A scan cannot create the variables that it carries.
    if microbatches == 1 or module.is_initializing():
        return getattr(module, method)(batch, **options)
    return _apply_one_by_one(module, batch, microbatches, method, options)


@automatic_axes
def _apply_one_by_one(
    module: nn.Module, batch: Float[Array, "batch ..."], microbatches: int, method: str, options: dict[str, bool]
) -> Float[Array, "batch ..."]:
    # Interleaved, so that every part holds rows of every device and no rows have to move between devices.
    parts = batch.reshape(-1, microbatches, *batch.shape[1:]).swapaxes(0, 1)

    def apply_to(module: nn.Module, _: None, part: Float[Array, "part ..."]) -> tuple[None, Float[Array, "part ..."]]:
        return None, getattr(module, method)(part, **options)

    # Inside a loop the compiler cannot merge the second computation with the first.
    recomputed = nn.remat(apply_to, prevent_cse=False)
    # Parameters are the same for all parts; running statistics and other state go from one to the next.
    scan = nn.scan(
        recomputed,
        variable_broadcast="params",
        variable_carry=nn.DenyList("params"),
        split_rngs={"params": False, nn.DenyList("params"): True},
    )
    _, results = scan(module, None, parts)
    return results.swapaxes(0, 1).reshape(len(batch), *results.shape[2:])
