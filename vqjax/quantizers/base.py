"""What every quantizer returns."""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError


@flax.struct.dataclass
class QuantizerOutput:
    """The result of quantizing a batch.

    Attributes:
      quantized: The codes, ``[..., dim]``, in the input's dtype. Their gradient is the estimator's.
      indices: int32 ``[...]``, with several heads ``[..., heads]``; -1 where the mask is False.
      loss: The quantizer's weighted losses, a float32 scalar: add it to the task's loss.
      metrics: float32 scalars by name, without gradient.
    """

    quantized: Float[Array, "*batch dim"]
    indices: Int[Array, "*indices"]
    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


def zero_where_masked(x: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> Float[Array, "*batch dim"]:
    """Vectors, with zeros where the mask is False."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))


def minus_one_where_masked(indices: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None) -> Int[Array, "*batch"]:
    """Indices, with -1 where the mask is False."""
    return indices if mask is None else jnp.where(mask, indices, -1)


def flatten(
    vectors: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None
) -> tuple[Float[Array, "tokens dim"], Bool[Array, " tokens"] | None]:
    """Vectors and mask with all leading axes in one."""
    return vectors.reshape(-1, vectors.shape[-1]), None if mask is None else mask.reshape(-1)


def decode_valid(
    decode: Callable[[Int[Array, "*indices"]], Float[Array, "*batch dim"]],
    indices: Integer[Array | np.ndarray, "*indices"],
    num_codes: int,
    several: bool = False,
) -> Float[Array, "*batch dim"]:
    """Decodes indices: zero vectors for -1, NaN for all others out of range.

    NaN shows, another code in its place would not.

    Args:
      decode: Maps int32 indices in range to vectors.
      indices: Of any integer dtype.
      num_codes: How many codes there are.
      several: Whether a vector has several indices, along the last axis.

    Returns:
      Vectors.

    Raises:
      UserError: The indices are no integers.
    """
    indices = int32_indices(indices, num_codes)
    valid, masked = (indices >= 0) & (indices < num_codes), indices == -1
    vectors = decode(jnp.where(valid, indices, 0))
    if several:
        valid, masked = jnp.all(valid, axis=-1), jnp.all(masked, axis=-1)
    return jnp.where(valid[..., None], vectors, jnp.where(masked, 0.0, jnp.nan)[..., None])


def int32_indices(indices: Integer[Array | np.ndarray, "*indices"], num_codes: int) -> Int[Array, "*indices"]:
    """Indices as int32, whatever their dtype: in range and -1 as they are, all others out of range on either side.

    Args:
      indices: Of any integer dtype. In it -1 and num_codes may not exist (token files hold uint8), or numbers may that
        int32 would turn into others.
      num_codes: How many codes there are.

    Returns:
      int32 indices in ``[-2, num_codes]``.

    Raises:
      UserError: The indices are no integers.
    """
    if not hasattr(indices, "dtype") or not jnp.issubdtype(indices.dtype, jnp.integer):
        kind = getattr(indices, "dtype", type(indices).__name__)
        raise UserError(f"indices has dtype {kind}: decode takes integers in an array, as encode returns them.")
    largest = jnp.iinfo(indices.dtype).max
    if largest < num_codes:
        return jnp.asarray(indices, jnp.int32)
    # NumPy's own clip, as JAX cuts 64 bits to 32 before it does anything.
    clip = np.clip if isinstance(indices, np.ndarray) else jnp.clip
    lowest = -2 if jnp.issubdtype(indices.dtype, jnp.signedinteger) else 0
    return jnp.asarray(clip(indices, lowest, num_codes), jnp.int32)


def create_projections(module: nn.Module, outer: int, inner: int) -> None:
    """Creates kernels and biases of both directions, in a compact method.

    Args:
      module: Gets ``project_in_kernel``, ``project_in_bias`` and the same of ``project_out`` in ``params``.
      outer: Features of the model.
      inner: Features of the quantizer.
    """
    for name, shape in (("project_in", (outer, inner)), ("project_out", (inner, outer))):
        module.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        module.param(f"{name}_bias", nn.initializers.zeros, shape[-1:], jnp.float32)


def has_projections(module: nn.Module) -> bool:
    """Whether the variables hold projections."""
    return module.has_variable("params", "project_in_kernel")


def outer_features(module: nn.Module) -> int:
    """The features of the model that the projections were made for."""
    return module.get_variable("params", "project_in_kernel").shape[0]


def inner_features(module: nn.Module) -> int:
    """The features of the codes that the projections were made for."""
    return module.get_variable("params", "project_in_kernel").shape[1]


def project(module: nn.Module, name: str, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch features"]:
    """Applies one of the two maps in float32.

    Args:
      module: Has the variables.
      name: ``"project_in"`` or ``"project_out"``.
      x: Vectors.

    Returns:
      Vectors of the other space.
    """
    kernel, bias = (module.get_variable("params", f"{name}_{part}") for part in ("kernel", "bias"))
    if kernel is None or kernel.shape[0] != x.shape[-1]:
        found = "is missing" if kernel is None else f"has shape {kernel.shape}"
        raise UserError(
            f"The projection {name} of {x.shape[-1]} features {found} in the variables: create them with init(key, z) "
            "of a quantizer with the same settings, and pass all collections on to apply."
        )
    x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return x + jnp.broadcast_to(bias, x.shape)


def mapped_axis(module: nn.Module) -> str | None:
    """The axis of the statistics; none in ``init``, which runs outside of the mapped function."""
    return None if module.is_initializing() else module.axis_name


def draw_key(module: nn.Module, cause: str) -> Array:
    """A key of the stream ``quantizer``, another one on each device of a mapped axis.

    Args:
      module: A quantizer with the field ``axis_name``.
      cause: What random numbers are drawn for, for the message where there is no such stream.

    Returns:
      A random key.

    Raises:
      UserError: No stream ``quantizer``.
    """
    if not module.has_rng("quantizer"):
        raise UserError(f"{cause} draws random numbers: pass rngs={{'quantizer': key}} to apply.")
    key = module.make_rng("quantizer")
    return key if module.axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(module.axis_name))


def create_rotation(module: nn.Module, features: int) -> None:
    """Draws ``codebook["rotation"]`` of a module, in ``init``."""
    draw = nn.initializers.orthogonal()
    module.variable(
        "codebook", "rotation", lambda: draw(module.make_rng("quantizer"), (features, features), jnp.float32)
    )


def rotate(
    module: nn.Module, x: Float[Array, "*batch features"], inverse: bool = False
) -> Float[Array, "*batch features"]:
    """Rotates features by the module's rotation, or back.

    Args:
      module: Has been through :func:`create_rotation`.
      x: Features.
      inverse: Rotate back.

    Returns:
      Features of the same lengths.

    Raises:
      UserError: The variables hold no rotation.
    """
    if not module.has_variable("codebook", "rotation"):
        raise UserError(
            "The variables hold no rotation: create them with init(key, z), and pass all collections on to apply, not "
            "params alone."
        )
    rotation = module.get_variable("codebook", "rotation")
    if rotation.shape[0] != x.shape[-1]:
        raise UserError(
            f"The rotation in the variables has shape {rotation.shape}, and codes have {x.shape[-1]} features: use the "
            "settings it was made with, or initialize anew."
        )
    return jnp.matmul(x, rotation.T if inverse else rotation, precision=jax.lax.Precision.HIGHEST)
