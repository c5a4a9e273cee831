"""Loss terms that keep a codebook in use: pure functions, and the same with a weight and a name."""

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import UserError
from vqjax.functional.chunks import sum_in_chunks
from vqjax.functional.entropy import global_entropy
from vqjax.functional.norms import normalize
from vqjax.functional.numbers import Number, is_weight, is_zero
from vqjax.functional.search import similarity
from vqjax.functional.sharding import with_automatic_axes

Mask = Bool[Array, "*batch"] | None
_BUSY_CODES_AT_ONCE = 64


@with_automatic_axes()
def orthogonality(codes: Float[Array, "codes dim"], active: Bool[Array, " codes"] | None = None) -> Float[Array, ""]:
    r"""Measure how far unit codes are from being orthogonal to each other.

    .. math:: \frac{1}{K^2} |\hat E \hat E^T|_F^2 - \frac1K,\quad \hat e_k = e_k/|e_k|

    Args:
      codes: The codebook.
      active: True for the :math:`K` codes that count; all by default.

    Returns:
      A scalar of at least 0; zero for orthogonal codes.

    Example:
      >>> import jax.numpy as jnp
      >>> float(orthogonality(jnp.eye(3))), float(orthogonality(jnp.ones((2, 3))).__round__(4))
      (0.0, 0.5)

    Source: Shin et al., 2021 (arXiv 2112.00384), eq. 2.
    """
    unit = normalize(codes)
    count = jnp.asarray(codes.shape[0], jnp.float32)
    if active is not None:
        unit = jnp.where(active[:, None], unit, 0.0)
        count = jnp.maximum(jnp.sum(active, dtype=jnp.float32), 1.0)
    # |E E^T| = |E^T E|: the smaller of the two products.
    left = unit if codes.shape[0] < codes.shape[1] else unit.T
    gram = jnp.matmul(left, left.T, precision=jax.lax.Precision.HIGHEST)
    # The diagonal has ones, and zeros for codes without a direction.
    return (jnp.sum(jnp.square(gram)) - jnp.sum(jnp.square(unit))) / jnp.square(count)


@with_automatic_axes()
def assignment_entropies(
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    inverse_temperature: Number = 100.0,
    distance: str = "euclidean",
    form: str = "softmax",
    mask: Mask = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Compute the entropies of the soft assignment of latents to codes, over the global batch.

    .. math:: \frac1N\sum_n H(p_n)\ \ \text{and}\ \ H\Big(\frac1N\sum_n p_n\Big),\quad
      p_n = \mathrm{softmax}_k(s_{nk}/\tau)

    with the similarities :math:`s` of :func:`vqjax.functional.similarity`.

    Args:
      z: Latents, any leading axes.
      codes: The codebook.
      inverse_temperature: :math:`1/\tau`.
      distance: One of those of :func:`vqjax.functional.similarity`.
      form: What is averaged: the probabilities (``"softmax"``), or the choice of the likeliest code, with the gradient
        of the probabilities (``"argmax"``): then the first value is the mean of :math:`-\log \max_k p_{nk}`, and the
        second the entropy of the codes in use.
      mask: True for the tokens that count; all by default.
      axis_name: Mapped axis over which the batch is split. The second value is then the global one on every device;
        the first, and the gradients of both, become global by averaging over the axis.

    Returns:
      Mean entropy of a token, and entropy of the mean; in nats, in ``[0, log(codes)]``.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[0.0], [1.0]])
      >>> per_token, batch = assignment_entropies(codes, codes)
      >>> round(abs(float(per_token)), 4), round(float(batch), 4)
      (0.0, 0.6931)

    Source: Yu et al., 2023 (arXiv 2310.05737), eq. 4 and 5.
    """
    tokens = z.reshape(-1, z.shape[-1])
    weights = jnp.ones(tokens.shape[0], jnp.float32) if mask is None else mask.reshape(-1).astype(jnp.float32)
    tokens = jnp.where(weights[:, None] > 0, tokens, 0.0)
    count = jnp.sum(weights)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    count = jnp.where(count > 0, count, 1.0)

    # Probabilities are computed again in the backward pass, so that no [tokens, codes] matrix is kept for it.
    @jax.checkpoint
    def sums(tokens: Float[Array, "tokens dim"], weights: Float[Array, " tokens"]):
        log_p = jax.nn.log_softmax(inverse_temperature * similarity(tokens, codes, distance))
        p = jnp.exp(log_p)
        if form == "argmax":
            chosen = jax.nn.one_hot(jnp.argmax(log_p, axis=-1), codes.shape[0], dtype=p.dtype)
            # Zero in value: the choice has the gradient of the probabilities.
            p = chosen + (p - jax.lax.stop_gradient(p))
        p = p * weights[:, None]
        return -jnp.sum(p * log_p), jnp.sum(p, axis=0)

    entropy_sum, p_sum = sum_in_chunks(sums, tokens, weights, codes.shape[0])
    return entropy_sum / count, global_entropy(_entropy, p_sum / count, axis_name)


def _entropy(p: Float[Array, " codes"]) -> Float[Array, ""]:
    # The derivative of the logarithm adds one constant to all slopes, which cancels because probabilities sum to one.
    log_p = jax.lax.stop_gradient(jnp.log(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)))
    return -jnp.sum(p * log_p)


@with_automatic_axes()
def region_targets(
    codes: Float[Array, "codes dim"], counts: Float[Array, " codes"], sums: Float[Array, "codes dim"]
) -> tuple[Float[Array, "codes dim"], Bool[Array, " codes"]]:
    r"""Give codes without tokens the targets of busy codes near them.

    The target of a code with :math:`n_k` tokens is their mean :math:`t_k`. Codes with more than one token also give
    theirs to

    .. math:: m_k = \Big\lceil n_k\, |N| \Big/ \sum_{j:\, n_j > 1} n_j \Big\rceil

    codes of the set :math:`N` of those without tokens: the ones nearest to :math:`e_k`, of equally near ones the first.
    A code that several give a target to takes the mean of these.

    Distances between codes are computed for a few busy codes at a time, so that no matrix of all codes by all codes is
    held; the time grows with the number of busy codes times that of all codes, and is none if all codes have tokens.

    Args:
      codes: The codebook.
      counts: Tokens per code.
      sums: Sum of the latents of each code.

    Returns:
      The targets, and True for the codes that have one. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> codes, counts = jnp.array([[0.0], [1.0], [9.0]]), jnp.array([2.0, 0.0, 1.0])
      >>> targets, has_target = region_targets(codes, counts, sums=jnp.array([[0.5], [0.0], [8.0]]))
      >>> targets[:, 0].tolist(), has_target.tolist()
      ([0.25, 0.25, 8.0], [True, True, True])

    Source: StableVQ (arXiv 2609.26774).
    """
    codes, counts, sums = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (codes, counts, sums))
    num_codes, active, busy = codes.shape[0], counts > 0, counts > 1
    means = sums / jnp.maximum(counts, 1.0)[:, None]
    shares = counts / jnp.maximum(jnp.sum(jnp.where(busy, counts, 0.0)), 1.0)
    # The last factor, because rounding must not add a code where the quotient is an integer.
    quotient = jnp.sum(~active, dtype=jnp.float32) * shares * (1 - 4 * jnp.finfo(jnp.float32).eps)
    given = jnp.where(busy, jnp.ceil(quotient), 0.0).astype(jnp.int32)
    rows, last = min(num_codes, _BUSY_CODES_AT_ONCE), jnp.where(jnp.all(active), 0, jnp.sum(busy, dtype=jnp.int32))
    # Busy codes come first, so that the loop ends behind the last one.
    order = jnp.pad(jnp.argsort(~busy), (0, -num_codes % rows))

    def give(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, total, givers = state
        here = jax.lax.dynamic_slice_in_dim(order, start, rows)
        number = jnp.where(start + jnp.arange(rows, dtype=jnp.int32) < last, given[here], 0)[:, None]
        distances = jnp.maximum(-similarity(codes[here], codes, "squared_euclidean"), 0.0)
        distances = jnp.where(active[None], jnp.inf, distances)
        farthest = _smallest(distances, number)
        nearer, equal = distances < farthest, distances == farthest
        left = number - jnp.sum(nearer, axis=-1, keepdims=True, dtype=jnp.int32)
        takes = nearer | (equal & (jnp.cumsum(equal, axis=-1, dtype=jnp.int32) <= left))
        takes = (takes & (number > 0) & ~active[None]).astype(jnp.float32)
        total += jnp.matmul(takes.T, means[here], precision=jax.lax.Precision.HIGHEST)
        return start + rows, total, givers + jnp.sum(takes, axis=0)

    nothing = jnp.zeros_like(last), jnp.zeros_like(codes), jnp.zeros_like(counts)
    _, total, givers = jax.lax.while_loop(lambda state: state[0] < last, give, nothing)
    targets = jnp.where(active[:, None], means, total / jnp.maximum(givers, 1.0)[:, None])
    return targets, active | (givers > 0)


def _smallest(x: Float[Array, "rows columns"], rank: Int[Array, "rows 1"]) -> Float[Array, "rows 1"]:
    """Return the value of this rank, from 1, in each row of numbers that are not negative."""
    # By bisection, which is several times faster than sorting on CPUs. The bits of such numbers have their order.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle, axis=-1, keepdims=True, dtype=jnp.int32) >= rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    lowest = jnp.zeros_like(rank)
    infinity = jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32)
    found, _ = jax.lax.fori_loop(0, 31, halve, (lowest, lowest + infinity))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


@runtime_checkable
class Regularizer(Protocol):
    """Loss term of a codebook, with its weight.

    A quantizer passes ``sums``, the sum of the latents of each code in the global batch, to those that take it.

    Attributes:
      weight: Factor in the loss.
      name: Name of the metric.
      needs_learned_codes: Whether the gradient of the term reaches nothing but the codes.
    """

    if TYPE_CHECKING:
        # Those of frozen dataclasses are read-only.
        @property
        def weight(self) -> Number: ...

    else:
        weight: Number

    name: ClassVar[str]
    needs_learned_codes: ClassVar[bool]

    def __call__(
        self,
        z: Float[Array, "*batch dim"],
        codes: Float[Array, "codes dim"],
        counts: Float[Array, " codes"],
        mask: Mask = None,
        axis_name: str | None = None,
        distance: str = "euclidean",
    ) -> Float[Array, ""]:
        """Compute the term without its weight.

        Args:
          z: Latents, any leading axes.
          codes: The codebook.
          counts: Tokens per code in the global batch.
          mask: True for the tokens that count; all by default.
          axis_name: Mapped axis over which the batch is split.
          distance: ``"euclidean"`` or ``"cosine"``.

        Returns:
          A scalar.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Orthogonality:
    """:func:`orthogonality` of the codes, or of those that the batch uses.

    Attributes:
      weight: Factor in the loss, at least 0.
      active_only: Whether only codes that received a token in the batch count.

    Raises:
      UserError: ``weight`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> z, codes, counts = jnp.eye(2), jnp.eye(2), jnp.ones(2)
      >>> print(Orthogonality(10.0)(z, codes, counts))
      0.0
    """

    weight: Number
    active_only: bool = False
    name: ClassVar[str] = "orthogonality"
    needs_learned_codes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)

    def __call__(
        self,
        z: Array,
        codes: Array,
        counts: Array,
        mask: Array | None = None,
        axis_name: str | None = None,
        distance: str = "euclidean",
    ) -> Float[Array, ""]:
        """Compute the term without its weight."""
        return orthogonality(codes, counts > 0 if self.active_only else None)


@dataclasses.dataclass(frozen=True)
class _EntropyRegularizer(abc.ABC):
    """Base of the terms that are computed from :func:`assignment_entropies`."""

    weight: Number
    inverse_temperature: Number = 100.0
    needs_learned_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)
        _check_weight("inverse_temperature", self.inverse_temperature)

    def __call__(
        self,
        z: Array,
        codes: Array,
        counts: Array,
        mask: Array | None = None,
        axis_name: str | None = None,
        distance: str = "euclidean",
    ) -> Float[Array, ""]:
        """Compute the term without its weight."""
        settings = {"inverse_temperature": self.inverse_temperature, "distance": distance}
        return self._combine(*assignment_entropies(z, codes, mask=mask, axis_name=axis_name, **settings))

    @abc.abstractmethod
    def _combine(self, per_token: Float[Array, ""], batch: Float[Array, ""]) -> Float[Array, ""]: ...


class Diversity(_EntropyRegularizer):
    """Negative entropy of the mean assignment, which rewards the use of all codes.

    Attributes:
      weight: Factor in the loss, at least 0.
      inverse_temperature: See :func:`assignment_entropies`.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> z, codes, counts = jnp.eye(2), jnp.eye(2), jnp.ones(2)
      >>> print(Diversity(0.1)(z, codes, counts).round(4))
      -0.6931
    """

    name: ClassVar[str] = "diversity"

    def _combine(self, per_token: Float[Array, ""], batch: Float[Array, ""]) -> Float[Array, ""]:
        return -batch


class EntropyPenalty(_EntropyRegularizer):
    """Mean entropy of a token less the entropy of the mean: confident assignments, and all codes in use.

    Attributes:
      weight: Factor in the loss, at least 0.
      inverse_temperature: See :func:`assignment_entropies`.

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> z, codes, counts = jnp.eye(2), jnp.eye(2), jnp.ones(2)
      >>> print(EntropyPenalty(0.1)(z, codes, counts).round(4))
      -0.6931
    """

    name: ClassVar[str] = "entropy_penalty"

    def _combine(self, per_token: Float[Array, ""], batch: Float[Array, ""]) -> Float[Array, ""]:
        return per_token - batch


@dataclasses.dataclass(frozen=True)
class EntropyLoss:
    r"""The entropy loss of MaskGIT and the tokenizers after it: confident assignments, and all codes in use.

    .. math:: \frac1N\sum_n H(p_n) - H\Big(\frac1N\sum_n p_n\Big),\quad
      p_n = \mathrm{softmax}_k(-|z_n - e_k|^2/\tau)

    :class:`EntropyPenalty` with squared distances, under any ``distance`` of the quantizer. The ``"argmax"`` form
    averages the choices of the tokens, with the gradient of :math:`p_n`, see :func:`assignment_entropies`. Entropies
    are exact: the authors add 1e-5 to the probabilities within one of the logarithms.

    Attributes:
      weight: Factor in the loss (``entropy_loss_ratio``), at least 0.
      temperature: :math:`\tau` (``entropy_temperature``), above 0.
      form: ``"softmax"`` or ``"argmax"`` (``entropy_loss_type``).

    Raises:
      UserError: An argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> z, codes, counts = jnp.eye(2), jnp.eye(2), jnp.ones(2)
      >>> print(EntropyLoss(0.1)(z, codes, counts).round(4))
      -0.6931

    Source: Chang et al., 2022 (arXiv 2202.04200), and the authors' code (google-research/maskgit).
    """

    weight: Number
    temperature: Number = 0.01
    form: Literal["softmax", "argmax"] = "softmax"
    name: ClassVar[str] = "entropy_loss"
    needs_learned_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)
        _check_weight("temperature", self.temperature)
        if is_zero(self.temperature):
            raise UserError("temperature must be above 0, got 0; use form='argmax' for the choice itself.")
        if self.form not in ("softmax", "argmax"):
            raise UserError(f"form must be 'softmax' or 'argmax', got {self.form!r}.")

    def __call__(
        self,
        z: Array,
        codes: Array,
        counts: Array,
        mask: Array | None = None,
        axis_name: str | None = None,
        distance: str = "euclidean",
    ) -> Float[Array, ""]:
        """Compute the term without its weight."""
        settings = {"inverse_temperature": 1 / self.temperature, "distance": "squared_euclidean", "form": self.form}
        per_token, batch = assignment_entropies(z, codes, mask=mask, axis_name=axis_name, **settings)
        return per_token - batch


@dataclasses.dataclass(frozen=True)
class Region:
    r"""Region VQ: codes without tokens move to the latents of busy codes near them.

    .. math:: \frac{1}{|T|}\sum_{k \in T} |e_k - \mathrm{sg}(t_k)|^2

    averaged over dimensions too, with the targets :math:`t_k` of :func:`region_targets` and the set :math:`T` of codes
    that have one. It trains the codes in use as well, each by the same weight however many tokens it has, and stands in
    StableVQ for the codebook loss: use it with ``GradientCodebook(weight=0.0)``, or 0 in the codebook of a transform.
    There, codes that were used in a window of recent steps count as used; here those of the batch do, so that no state
    is needed: take batches of several tokens per code.

    Attributes:
      weight: Factor in the loss, at least 0.

    Raises:
      UserError: ``weight`` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> codes, counts, sums = jnp.array([[0.0], [2.0]]), jnp.array([2.0, 0.0]), jnp.array([[2.0], [0.0]])
      >>> print(Region(1.0)(jnp.ones((2, 1)), codes, counts, sums=sums))  # both are 1 away from the mean of the tokens
      1.0

    Source: StableVQ (arXiv 2609.26774).
    """

    weight: Number
    name: ClassVar[str] = "region"
    needs_learned_codes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)

    def __call__(
        self,
        z: Array,
        codes: Array,
        counts: Array,
        mask: Array | None = None,
        axis_name: str | None = None,
        distance: str = "euclidean",
        *,
        sums: Float[Array, "codes dim"],
    ) -> Float[Array, ""]:
        """Compute the term without its weight; ``sums`` holds the sum of each code's latents in the global batch."""
        targets, has_target = region_targets(codes, counts, sums)
        errors = jnp.where(has_target, jnp.mean(jnp.square(codes - targets), axis=-1), 0.0)
        return jnp.sum(errors) / jnp.maximum(jnp.sum(has_target, dtype=jnp.float32), 1.0)


def _check_weight(name: str, value: Number) -> None:
    if not is_weight(value):
        raise UserError(f"{name} must be a finite number of at least 0, got {value!r}.")
