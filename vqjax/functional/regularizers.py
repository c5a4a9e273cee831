"""Loss terms that keep a codebook in use: pure functions, and the same with a weight and a name."""

import abc
import dataclasses
from typing import ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.functional.chunks import sum_in_chunks
from vqjax.functional.entropy import global_entropy
from vqjax.functional.norms import normalize
from vqjax.functional.numbers import Number, is_weight, is_zero
from vqjax.functional.search import similarity
from vqjax.functional.sharding import with_automatic_axes

Mask = Bool[Array, "*batch"] | None


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
    return jnp.sum(jnp.square(gram)) / jnp.square(count) - 1 / count


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


@runtime_checkable
class Regularizer(Protocol):
    """Loss term of a codebook, with its weight.

    Attributes:
      weight: Factor in the loss.
      name: Name of the metric.
      needs_learned_codes: Whether the gradient of the term reaches nothing but the codes.
    """

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


def _check_weight(name: str, value: Number) -> None:
    if not is_weight(value):
        raise UserError(f"{name} must be a finite number of at least 0, got {value!r}.")
