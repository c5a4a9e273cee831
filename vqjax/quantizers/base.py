"""The contract of every quantizer: base class, output, masking, projections, random keys."""

import abc
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import flax.linen as nn
import flax.struct
import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.core.scope import CollectionFilter
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.functional.metrics import masked_mean
from vqjax.functional.numbers import Number
from vqjax.quantizers.boxes import read
from vqjax.quantizers.sharding import AutomaticAxes
from vqjax.quantizers.validation import check_input, require, use_python_numbers

Vectors = Float[Array, "*batch dim"]
Features = Float[Array, "*batch features"]
Indices = Int[Array, "*indices"]
Codes = Float[Array, "*codebooks codes features"]
Mask = Bool[Array, "*batch"] | None
Scalar = Float[Array, ""]


@flax.struct.dataclass
class QuantizerOutput:
    """The result of quantizing a batch.

    Attributes:
      quantized: The codes, ``[..., dim]``, in the input's dtype. Their gradient is the estimator's.
      indices: int32 ``[...]``, with several per vector ``[..., *index_shape]``; -1 where the mask is False.
      loss: The quantizer's weighted losses, a float32 scalar: add it to the task's loss.
      metrics: float32 scalars by name, without gradient.
    """

    quantized: Float[Array, "*batch dim"]
    indices: Int[Array, "*indices"]
    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]

    def __repr__(self) -> str:
        return short_repr(self)


def short_repr(output: Any) -> str:
    """Return a dataclass of arrays as text: dtypes and shapes, and scalars as numbers.

    Example:
      >>> QuantizerOutput(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), jnp.zeros(()), {"usage": jnp.array(0.25)})
      QuantizerOutput(quantized=float32[2,4], indices=int32[2], loss=0, metrics={usage: 0.25})
    """
    fields = [f"{field.name}={_short(getattr(output, field.name))}" for field in dataclasses.fields(output)]
    return f"{type(output).__name__}({', '.join(fields)})"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(entry)}" for name, entry in value.items()) + "}"
    if not isinstance(value, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        return repr(value)
    if value.ndim == 0 and _is_readable(value):
        return f"{jax.device_get(value).item():.5g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _is_readable(value: object) -> bool:
    """Return True for numbers that are known here and now: not traced, not donated, not on another process."""
    if not isinstance(value, jax.Array):
        return isinstance(value, np.ndarray | np.generic)
    if isinstance(value, jax.core.Tracer) or value.is_deleted():
        return False
    return value.is_fully_addressable or value.is_fully_replicated


def register_export(output: type) -> None:
    """Let ``jax.export`` serialize functions that take or return a dataclass of arrays."""
    # A module that is loaded again, as notebooks do, has a class of the same name.
    with contextlib.suppress(ValueError):
        jax.export.register_pytree_node_serialization(
            output,
            serialized_name=f"vqjax.{output.__name__}",
            # All fields are arrays: there is nothing else to write.
            serialize_auxdata=lambda auxdata: b"",
            deserialize_auxdata=lambda serialized: (),
        )


register_export(QuantizerOutput)


class Quantizer(AutomaticAxes, abc.ABC):
    """Base class of the quantizers.

    A subclass implements ``__call__``, ``encode`` and ``decode``, and has ``num_codes``, the number of codes of one
    codebook, as a field or as a property. :class:`Residual` and :class:`Grouped` compose quantizers by the other public
    members, whose defaults suit a quantizer with one index per vector.

    Attributes:
      train: Whether calls train, for a module that is made to do one or the other; None if each call says so.
      axis_name: Name of a mapped axis over which the batch is split, or None; a subclass may make it a field. Only
        training needs the axis: other calls outside of the mapped function take their input for the whole batch.
      differs_in_training: Whether a call in training updates state, draws random numbers, or searches differently, so
        that ``train`` has to be given.
      estimator: Gradient estimator. Composites with ``gradient="total"`` apply that of their quantizer once, to the sum
        of the codes.
      fits_residual: Whether the output approximates the input vector by vector, so that a residual is left.
      quantizes_maps: Whether vectors of a map are quantized together instead of one by one.
    """

    _: dataclasses.KW_ONLY
    train: bool | None = None

    # Without annotations, which would make them fields.
    automatic_methods = (
        "__call__",
        "assign",
        "encode",
        "decode",
        "kmeans_init",
        "codebook_loss",
        "bypass",
        "code_vectors",
    )
    axis_name = None
    differs_in_training = True
    estimator = "straight_through"
    fits_residual = True
    quantizes_maps = False

    def __post_init__(self) -> None:
        use_python_numbers(self)
        super().__post_init__()

    if TYPE_CHECKING:
        # Flax has to say that the results of any method may come with variables or without, and that those of init may
        # be frozen, which they are only if it is configured so.
        def init(self, rngs: Array | dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Any]: ...

        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: None = None,
            mutable: Literal[False] = False,
            **kwargs: Any,
        ) -> QuantizerOutput: ...

        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: None = None,
            mutable: CollectionFilter,
            **kwargs: Any,
        ) -> tuple[QuantizerOutput, dict[str, Any]]: ...

        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: Literal["encode", "decode"],
            mutable: Literal[False] = False,
            **kwargs: Any,
        ) -> Array: ...

        @overload
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            method: str | Callable[..., Any],
            mutable: CollectionFilter = False,
            **kwargs: Any,
        ) -> Any: ...

        def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any: ...

    @abc.abstractmethod
    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool | None = None, condition: Features | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no gradient,
            and come back as zero vectors with index -1.
          train: Update state after the lookup, and draw the noise of training. Must be given here or at construction if
            it changes anything.
          condition: One vector per token, if the codes depend on one.

        Returns:
          Codes, indices, the weighted loss, and metrics.

        Raises:
          UserError: An input has the wrong dtype or shape; ``train`` is given neither here nor at construction, or
            twice; random numbers are drawn and there is no ``quantizer`` key.
        """

    @abc.abstractmethod
    def encode(self, z: Vectors, mask: Mask = None) -> Indices:
        """Return the int32 indices of vectors, -1 where the mask is False."""

    @abc.abstractmethod
    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Return the float32 vectors of indices: ``decode(encode(z))`` equals ``quantized`` of ``train=False``."""

    def code_vectors(self) -> Codes | tuple[Any, ...]:
        """Return the codes that are looked up, after any transform and normalization, as an array or a tuple of them.

        Call it as ``quantizer.apply(variables, method="code_vectors")``. The codes are in the space of the codes; in
        that of the input they are ``decode(jnp.arange(num_codes))``, which differs if there is a projection.

        Returns:
          float32 ``[num_codes, features]``, after an axis of heads if each has a codebook; a tuple if there are stages,
          groups or scales.

        Raises:
          UserError: There are no codes to return: none that are the same for every token, or too many.
        """
        raise UserError(f"{type(self).__name__} has no codebook to return; decode the indices whose vectors you need.")

    @property
    def index_shape(self) -> tuple[int, ...]:
        """The shape of a vector's indices, behind the leading axes of the input; empty for a single index."""
        return ()

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks whose use is counted, one for each index of a vector."""
        return math.prod(self.index_shape)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of codes of each codebook whose use is counted, in the order of a vector's indices."""
        return (self.num_codes,) * self.num_codebooks

    @property
    def code_features(self) -> int | None:
        """The number of features of the codes if it is fixed; None if it is that of the input."""
        return None

    @property
    def residual_limits(self) -> tuple[float, ...] | None:
        """Limit of each feature of the input, which :class:`Residual` bounds by a soft clamp; None for no limits."""
        return None

    def at_stage(self, stage: int) -> "Quantizer":
        """Return the quantizer of a stage of :class:`Residual`: this one, unless codes become finer by stage."""
        return self

    def without_estimator(self) -> "Quantizer":
        """Return a copy whose gradient goes to the codes alone, for composites that apply an estimator once.

        The straight-through estimator holds the codes constant, so a quantizer with it is returned as it is.
        """
        return self

    @property
    def sync_nu(self) -> Number:
        """Weight with which the task's gradient reaches the codes as well."""
        return 0.0

    def kmeans_init(self, z: Vectors, mask: Mask = None, **options: object) -> None:
        """Initialize the codebook with k-means; an error for quantizers without a codebook."""
        raise UserError(f"{type(self).__name__} has no codebook to initialize with k-means; leave kmeans_init out.")

    def bypass(self, z: Vectors) -> Vectors:
        """Return what an infinitely fine codebook would return; an error for quantizers without a codebook."""
        raise UserError(f"{type(self).__name__} has no codebook to bypass; use a VectorQuantizer.")

    def _is_training(self, train: bool | None) -> bool:
        """Return whether a call trains, as either its argument or the constructor's says; never in ``init``."""
        if self.is_initializing():
            return False
        if train is not None and self.train is not None:
            raise UserError(f"train must be given once, got {self.train} at construction and {train} in the call.")
        train = self.train if train is None else train
        if train is None and not self.differs_in_training:
            return False
        advice = (
            "training is not evaluation here: pass it to the call or to the constructor"
            if train is None
            else "mark it as a static argument under jit"
        )
        require(isinstance(train, bool | np.bool_), "train", train, f"True or False for {type(self).__name__}", advice)
        if train and self.axis_name is not None and not _is_mapped(self.axis_name):
            raise UserError(
                f"axis_name must be the axis of a mapped function around a call that trains, got {self.axis_name!r}; "
                "train within pmap or shard_map over that axis, or evaluate with train=False."
            )
        return bool(train)

    def _check_template(self) -> None:
        """Refuse a mode of the quantizer that this one is made of, which gets it from the call."""
        advice = f"pass train to {type(self).__name__}(...) or to the call"
        require(self.quantizer.train is None, "quantizer.train", self.quantizer.train, "None", advice)

    @property
    def _batch_axis(self) -> str | None:
        """The mapped axis of the statistics; None outside of the mapped function, and in ``init``."""
        if self.axis_name is None or self.is_initializing() or not _is_mapped(self.axis_name):
            return None
        return self.axis_name

    def _draw_key(self, cause: str, *, per_device: bool = True) -> Array:
        """Draw a key of the stream ``quantizer``; by default a different one on each device of a mapped axis."""
        if not self.has_rng("quantizer"):
            raise UserError(f"{cause} draws random numbers; pass rngs={{'quantizer': key}} to apply.")
        key = self.make_rng("quantizer")
        if self._batch_axis is None or not per_device:
            return key
        return jax.random.fold_in(key, jax.lax.axis_index(self._batch_axis))

    def _check_input(self, z: Vectors, mask: Mask, condition: Features | None = None) -> None:
        check_input(z, mask)
        if condition is not None:
            raise UserError(f"condition must be None; the codes of {type(self).__name__} do not depend on one.")

    def _mask_indices(self, indices: Indices, mask: Mask) -> Indices:
        """Return indices with -1 where the mask is False, in all indices of the vector."""
        if mask is None:
            return indices
        return jnp.where(jnp.expand_dims(mask, tuple(range(mask.ndim, indices.ndim))), indices, -1)

    def _mean(self, values: Float[Array, "*tokens"], mask: Bool[Array, "*tokens"] | None) -> Scalar:
        """Return the mean over unmasked tokens of the global batch."""
        return masked_mean(values, mask, self._batch_axis)

    def _squared_distance(self, x: Features, y: Features, mask: Bool[Array, "*tokens"] | None) -> Scalar:
        """Return the mean squared difference over unmasked tokens and features."""
        return self._mean(jnp.mean(jnp.square(x - y), axis=-1), mask)

    def _errors(self, x: Features, codes: Features, mask: Bool[Array, "*tokens"] | None) -> dict[str, Scalar]:
        """Return the mean squared error of codes, and its ratio to the mean square of what they stand for."""
        error = self._squared_distance(x, codes, mask)
        return {"quantization_error": error, "relative_error": self._relative_error(error, x, mask)}

    def _relative_error(self, error: Scalar, x: Features, mask: Bool[Array, "*tokens"] | None) -> Scalar:
        """Return the ratio of a mean squared error to the mean square; zero if that is zero."""
        square = self._mean(jnp.mean(jnp.square(x), axis=-1), mask)
        if self._batch_axis is not None:
            # The mean over devices of the ratio is then the ratio of the global batch.
            square = jax.lax.pmean(square, self._batch_axis)
        return jnp.where(square > 0, error / jnp.where(square > 0, square, 1.0), 0.0)

    def _to_code_space(self, z: Vectors) -> Features:
        """Return what the codes stand for: the input after projection, normalization and bounds, in float32."""
        return z.astype(jnp.float32)

    def _create_projections(self, outer: int, inner: int) -> None:
        """Create, in ``init``, linear maps between differing numbers of features of input and codes."""
        if outer == inner:
            return
        for name, shape in (("project_in", (outer, inner)), ("project_out", (inner, outer))):
            self.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
            self.param(f"{name}_bias", nn.initializers.zeros, shape[-1:], jnp.float32)

    @property
    def _is_projected(self) -> bool:
        return self.has_variable("params", "project_in_kernel")

    def _project(self, name: Literal["project_in", "project_out"], x: Vectors) -> Features:
        """Apply one of the two maps in float32."""
        kernel, bias = (read(self, "params", f"{name}_{part}") for part in ("kernel", "bias"))
        if kernel is None or kernel.shape[0] != x.shape[-1]:
            found = "none" if kernel is None else f"one of shape {kernel.shape}"
            raise UserError(
                f"The variables must hold the projection {name} of {x.shape[-1]} features, got {found}; create them "
                "with init(key, z), using the same settings and input, and pass all collections to apply."
            )
        x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        return x + jnp.broadcast_to(bias, x.shape)

    def _project_in(self, z: Vectors, features: int | None) -> Features:
        """Return float32 vectors of the codes' features, projected if ``init`` created projections."""
        z = z.astype(jnp.float32)
        z = self._project("project_in", z) if self._is_projected else z
        if features is not None and z.shape[-1] != features:
            where = " after the projection in the variables" if self._is_projected else ""
            raise UserError(
                f"z must have {features} features{where}, as the codes have, got {z.shape[-1]}; pass vectors of that "
                "size, or pass all collections of init(key, z) to apply."
            )
        return z

    def _project_out(self, vectors: Features) -> Vectors:
        return self._project("project_out", vectors) if self._is_projected else vectors


def _is_mapped(axis_name: str) -> bool:
    """Return True within a function that is mapped over the axis."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def combine_metrics(metrics: Sequence[dict[str, Scalar]]) -> dict[str, Scalar]:
    """Return the mean of the metrics of several quantizers, of dead codes the total."""
    combined = jax.tree.map(lambda *values: sum(values) / len(values), *metrics)
    return combined | {name: sum(each[name] for each in metrics) for name in combined if name.startswith("dead_codes")}


def usage_by_part(metrics: Sequence[dict[str, Scalar]], part: str = "") -> dict[str, Scalar]:
    """Return the use of the codes of each of several quantizers, as ``perplexity_0`` and so on."""
    names = ("perplexity", "usage", "dead_codes")
    return {f"{name}_{part}{i}": each[name] for i, each in enumerate(metrics) for name in names if name in each}


def zero_where_masked(x: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None) -> Float[Array, "*batch dim"]:
    """Return vectors with zeros where the mask is False."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))


def decode_valid(
    decode: Callable[[Int[Array, "*indices"]], Float[Array, "*batch dim"]],
    indices: Integer[Array | np.ndarray, "*indices"],
    num_codes: int,
    several: bool = False,
) -> Float[Array, "*batch dim"]:
    """Decode indices of any integer dtype: zero vectors for -1, NaN for all others out of range.

    NaN exposes a wrong index; the vector of some other code would hide it. With ``several``, a vector has all indices
    along the last axis.
    """
    indices = int32_indices(indices, num_codes)
    valid, masked = (indices >= 0) & (indices < num_codes), indices == -1
    vectors = decode(jnp.where(valid, indices, 0))
    if several:
        valid, masked = jnp.all(valid, axis=-1), jnp.all(masked, axis=-1)
    # NaN arises only where there is a wrong index, so that searches for NaN find nothing else.
    return jnp.where(valid[..., None], vectors, jnp.where(valid | masked, 0.0, jnp.nan)[..., None])


def check_indices(indices: Any) -> None:
    """Refuse anything but an array of integers."""
    if not hasattr(indices, "dtype") or not jnp.issubdtype(indices.dtype, jnp.integer):
        kind = getattr(indices, "dtype", type(indices).__name__)
        raise UserError(f"indices must be an array of integers, as encode returns them, got {kind}.")


def int32_indices(indices: Integer[Array | np.ndarray, "*indices"], num_codes: int) -> Int[Array, "*indices"]:
    """Return indices as int32 in ``[-2, num_codes]``: in range and -1 as they are, all others out of range.

    In a narrow dtype -1 and ``num_codes`` may not exist (token files hold uint8); in a wide one, numbers may that
    int32 would turn into valid indices.
    """
    check_indices(indices)
    largest = jnp.iinfo(indices.dtype).max
    if largest < num_codes:
        return jnp.asarray(indices, jnp.int32)
    # NumPy's own clip, as JAX cuts 64 bits to 32 before it does anything.
    clip = np.clip if isinstance(indices, np.ndarray) else jnp.clip
    lowest = -2 if jnp.issubdtype(indices.dtype, jnp.signedinteger) else 0
    return jnp.asarray(clip(indices, lowest, num_codes), jnp.int32)
