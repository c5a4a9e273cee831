"""Encoder and decoder of clips that never look ahead: VQGAN's layers for each frame, and causal ones over time."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from vqjax.errors import UserError
from vqjax.functional.clips import frames_of
from vqjax.models.layers import Clips, Images, check_clips, check_patches, group_norm, rows_product, space_to_depth
from vqjax.models.vqgan import BetweenFrames, VQGANDecoder, VQGANEncoder, conv, decode_features, encode_images
from vqjax.quantizers.sharding import automatic_axes
from vqjax.quantizers.validation import require_choice, require_count

STREAM = "stream"
"""Collection of what layers keep of the past while a clip passes in parts."""

NormName = Literal["group", "position"]

_TAPS = 3


class CausalVideoEncoder(VQGANEncoder):
    """Clips to a grid of vectors for the first frame, and one for each later group of ``2 ** time_scalings`` frames.

    The layers of :class:`vqjax.models.VQGANEncoder` see one frame at a time. A causal convolution over three frames
    follows each residual block, and the finest ``time_scalings`` levels halve the number of frames, the coarsest one
    repeatedly where there are too few. A clip therefore has ``1 + n * 2 ** time_scalings`` frames, and an image is a
    clip of one. The vectors of a group depend on its frames and on earlier ones only; in front of the first frame, it
    is repeated.

    Convolutions over time start as the identity: an image tokenizer makes one of clips, see :func:`inflated`.

    While the collection ``stream`` is mutable, a clip may pass in parts. The first has ``1 + n * 2 ** time_scalings``
    frames, each later one a multiple of ``2 ** time_scalings``.

    Attributes:
      patch_size: Height and width of the squares of pixels that the first convolution sees as features of one position;
        1 for single pixels, as image tokenizers.
      time_scalings: How often the number of frames is halved.
      norm: ``"group"``: norms over a whole frame, as VQGAN's. ``"position"``: RMS norms of each position, so that what
        is far away in a frame does not matter. For all others see :class:`vqjax.models.VQGANEncoder`.

    Raises:
      UserError: A size is out of range, or clips have another number of frames.

    Example:
      >>> import jax
      >>> encoder = CausalVideoEncoder(channels=32, multipliers=(1, 2, 2), latent_dim=4, attention_resolutions=())
      >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 9, 16, 16, 3)))[0].shape
      (1, 3, 4, 4, 4)

    Source: Yu et al., 2024 (MAGVIT-v2, arXiv 2310.05737), for the first frame; Agarwal et al., 2025 (Cosmos, arXiv
    2501.03575), for separate layers in space and time.
    """

    takes_clips: ClassVar[bool] = True

    patch_size: int = 1
    time_scalings: int = 2
    norm: NormName = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    @automatic_axes
    @nn.compact
    def __call__(self, clips: Clips, train: bool = False) -> Clips:
        check_clips(clips)
        group, begun = 2**self.time_scalings, _begun(self)
        if (clips.shape[1] - (not begun)) % group:
            expected = f"a multiple of {group}" if begun else f"1 more than a multiple of {group}"
            raise UserError(
                f"clips must have {expected} frames for time_scalings={self.time_scalings}, got {clips.shape[1]}; set "
                "config.data.frames to such a number, or cut them."
            )
        between = _between(self, clips, lambda name: _HalvedFrames(self.dtype, name=f"{name}_halved"))
        check_patches("clips", clips.shape[2:4], self.patch_size)
        frames = space_to_depth(frames_of(clips), self.patch_size)
        return _unfolded(encode_images(self, frames, train, between), clips)


class CausalVideoDecoder(VQGANDecoder):
    """A grid of codes to clips: the mirror image of :class:`CausalVideoEncoder`. The output is not bounded.

    The frames of a group depend on its codes and on earlier ones. While the collection ``stream`` is mutable, codes may
    pass in parts of any number of groups.

    Attributes:
      patch_size: As of the encoder.
      time_scalings: As of the encoder.
      norm: As of the encoder. For all others see :class:`vqjax.models.VQGANDecoder`.

    Raises:
      UserError: A size is out of range.

    Example:
      >>> import jax
      >>> decoder = CausalVideoDecoder(channels=32, multipliers=(1, 2, 2), attention_resolutions=())
      >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.ones((1, 3, 4, 4, 4)))[0].shape
      (1, 9, 16, 16, 3)

    Source: As of the encoder.
    """

    takes_clips: ClassVar[bool] = True

    patch_size: int = 1
    time_scalings: int = 2
    norm: NormName = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def setup(self) -> None:
        self.conv_out = conv(self.patch_size**2 * self.image_channels, jnp.float32)

    def __call__(self, codes: Clips, train: bool = False) -> Clips:
        return self.to_images(self.features(codes, train))

    @automatic_axes
    @nn.compact
    def features(self, codes: Clips, train: bool = False) -> Clips:
        """Return the float32 input of the last layer, ``conv_out``; see :meth:`VQGANDecoder.features`."""
        check_clips(codes)
        between = _between(self, codes, lambda name: _DoubledFrames(self.dtype, name=f"{name}_doubled"))
        return _unfolded(decode_features(self, frames_of(codes), train, between), codes)

    @automatic_axes
    def to_images(self, features: Clips) -> Clips:
        """Return clips from the features in front of the last layer."""
        return _unfolded(_from_patches(self.conv_out(frames_of(features)), self.patch_size), features)

    @property
    def margin(self) -> int | None:
        """Positions of the grid around a part of it on which its pixels depend; None for the whole grid."""
        if self.norm == "group" or self.middle_attention or self.attention_resolutions:
            return None
        radius = 1
        for level in range(len(self.multipliers)):
            # Two convolutions in a block; the one behind an enlargement sees pixels of the level below.
            radius += 2 * (self.num_res_blocks + 1)
            if level < len(self.multipliers) - 1:
                radius = math.ceil((radius + 1) / 2)
        return radius + 2 * 2 + 1


def inflated(variables: PyTree, of_images: PyTree) -> PyTree:
    """Return variables of a tokenizer of clips that treats a clip of one frame as an image tokenizer does that image.

    Convolutions over time stay as they start, the identity. So does what halves the number of frames, which keeps the
    last frame of each group, and what doubles it, which repeats frames.

    Args:
      variables: Initial variables of the tokenizer of clips, by collection.
      of_images: Variables of an image tokenizer with the same layers of images.

    Returns:
      The variables of clips, with the values of the image tokenizer where it has some.

    Raises:
      UserError: The image tokenizer has other layers.

    Example:
      >>> start = {"params": {"conv": jnp.zeros(2), "over_time": jnp.ones(2)}}
      >>> inflated(start, {"params": {"conv": jnp.full(2, 5.0)}})["params"]["conv"].tolist()
      [5.0, 5.0]
    """
    started, given = flatten_dict(variables, sep="/"), flatten_dict(of_images, sep="/")
    for name, value in given.items():
        found = getattr(started.get(name), "shape", None)
        if found != value.shape:
            raise UserError(
                f"the image tokenizer must have the layers of frames of the model, got {name} of shape {value.shape} "
                f"for {found}; give both the same config.model and config.quantizer, but for time_scalings."
            )
    return unflatten_dict(started | given, sep="/")


class _CausalConv(nn.Module):
    """A convolution over three frames, the last of which is the current one, behind a norm; added to the input."""

    norm: Callable[[str], nn.Module]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Clips) -> Clips:
        kernel = self.param("kernel", nn.initializers.zeros, (_TAPS * x.shape[-1], x.shape[-1]), jnp.float32)
        normed = _unfolded(nn.swish(self.norm("norm")(frames_of(x))), x).astype(self.dtype or x.dtype)
        past = _with_past(self, normed, first=_TAPS - 1, later=_TAPS - 1)
        taps = [past[:, tap : tap + x.shape[1]] for tap in range(_TAPS)]
        return x + _product(taps, kernel, self.dtype)


class _HalvedFrames(nn.Module):
    """A causal convolution over three frames that keeps the first frame and every second one behind it."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Clips) -> Clips:
        kernel = self.param("kernel", _current_frame, (_TAPS * x.shape[-1], x.shape[-1]), jnp.float32)
        past = _with_past(self, x, first=_TAPS - 1, later=_TAPS - 2)
        count = (past.shape[1] - _TAPS) // 2 + 1
        return _product([past[:, tap : tap + 2 * count : 2][:, :count] for tap in range(_TAPS)], kernel, self.dtype)


class _DoubledFrames(nn.Module):
    """Two frames for each but the first, each a linear function of it."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Clips) -> Clips:
        channels = x.shape[-1]
        kernel = self.param("kernel", _same_twice, (channels, 2 * channels), jnp.float32)
        pairs = _product([x], kernel, self.dtype).reshape(*x.shape[:-1], 2, channels)
        doubled = jnp.moveaxis(pairs, -2, 2).reshape(x.shape[0], -1, *x.shape[2:])
        begun = _begun(self)
        return doubled if begun else doubled[:, 1:]


def _check(module: CausalVideoEncoder | CausalVideoDecoder) -> None:
    require_choice("norm", module.norm, get_args(NormName))
    require_count("patch_size", module.patch_size, largest=64)
    require_count("time_scalings", module.time_scalings, smallest=0, largest=16)


def _between(
    module: CausalVideoEncoder | CausalVideoDecoder, clips: Clips, scaling: Callable[[str], nn.Module]
) -> BetweenFrames:
    """The layers over time of a model."""
    norm = group_norm if module.norm == "group" else _position_norm
    causal_conv = nn.remat(_CausalConv) if module.remat else _CausalConv

    def mix(x: Images, name: str) -> Images:
        layer = causal_conv(norm, module.dtype, name=f"{name}_over_time")
        return frames_of(layer(_unfolded(x, clips)))

    def scale(x: Images, level: int) -> Float[Array, "frames _ _ _"]:
        coarsest = len(module.multipliers) - 1
        scaled = _unfolded(x, clips)
        for number in range(module.time_scalings):
            if min(number, coarsest) == level:
                scaled = scaling(f"level_{level}_time_{number}")(scaled)
        return frames_of(scaled)

    return BetweenFrames(mix, scale, norm)


def _from_patches(patches: Images, size: int) -> Images:
    """The images whose squares of pixels these are: the inverse of ``space_to_depth``."""
    batch, rows, columns, features = patches.shape
    pixels = patches.reshape(batch, rows, columns, size, size, features // size**2).swapaxes(2, 3)
    return pixels.reshape(batch, rows * size, columns * size, -1)


def _position_norm(name: str) -> nn.RMSNorm:
    """An RMS norm that computes in float32."""
    return nn.RMSNorm(dtype=jnp.float32, name=name)


def _unfolded(frames: Float[Array, "images height width channels"], like: Clips) -> Clips:
    """The clips whose frames these are, as many as those in ``like``."""
    return frames.reshape(like.shape[0], -1, *frames.shape[1:])


def _product(taps: list[Clips], kernel: Float[Array, "inputs outputs"], dtype: DTypeLike | None) -> Clips:
    """The features of all taps at a position, times a matrix."""
    x, kernel = promote_dtype(jnp.concatenate(taps, axis=-1), kernel, dtype=dtype)
    return rows_product(x, kernel)


def _begun(module: nn.Module) -> bool:
    """Whether a module that keeps something of the past has seen a part of the clip; from now on it has."""
    if module.is_initializing() or not module.is_mutable_collection(STREAM):
        return False
    begun = module.has_variable(STREAM, "begun")
    module.put_variable(STREAM, "begun", jnp.ones(()))
    return begun


def _with_past(module: nn.Module, x: Clips, *, first: int, later: int) -> Clips:
    """Frames behind those before them: the first one again, or the last ones of the part before."""
    if module.is_initializing() or not module.is_mutable_collection(STREAM):
        return jnp.concatenate([jnp.repeat(x[:, :1], first, axis=1), x], axis=1)
    has_past = module.has_variable(STREAM, "past")
    past = module.get_variable(STREAM, "past") if has_past else jnp.repeat(x[:, :1], first, axis=1)
    padded = jnp.concatenate([past, x], axis=1)
    module.put_variable(STREAM, "past", padded[:, padded.shape[1] - later :])
    return padded


def _current_frame(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "inputs outputs"]:
    """Initial values by which the last of several frames is kept."""
    del key
    return jnp.eye(*shape, k=shape[1] - shape[0], dtype=dtype)


def _same_twice(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "inputs outputs"]:
    """Initial values by which a frame is repeated."""
    del key
    return jnp.tile(jnp.eye(shape[0], dtype=dtype), 2)
