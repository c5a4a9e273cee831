"""Terms for the loss that keep a codebook in use: each a pure function, and a weight on it."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.functional.chunks import LARGEST_CHUNK, sum_in_chunks
from vqjax.functional.norms import normalize
from vqjax.functional.search import similarity

Regularizer = Callable[..., Float[Array, ""]]
"""A callable ``(vectors, codes, counts, mask, axis_name, distance)`` with ``weight``, ``name`` and
``needs_learned_codes``."""


def orthogonality(codes: Float[Array, "codes dim"], active: Bool[Array, " codes"] | None = None) -> Float[Array, ""]:
    r"""How far unit codes are from being orthogonal to each other.

    .. math:: \frac{1}{K^2} |\hat E \hat E^T|_F^2 - \frac1K,\quad \hat e_k = e_k/|e_k|

    Args:
      codes: The codebook.
      active: True for the :math:`K` codes that count; all by default.

    Returns:
      A scalar; zero for orthogonal codes.

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


def assignment_entropies(
    z: Float[Array, "*batch dim"],
    codes: Float[Array, "codes dim"],
    *,
    inverse_temperature: float = 100.0,
    distance: str = "euclidean",
    mask: Bool[Array, "*batch"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Entropies of the soft assignment of tokens to codes, over the global batch.

    .. math:: \frac1N\sum_n H(p_n)\ \ \text{and}\ \ H\Big(\frac1N\sum_n p_n\Big),\quad
      p_n = \mathrm{softmax}_k(s_{nk}/\tau)

    with :math:`s` of :func:`vqjax.functional.search.similarity`.

    Args:
      z: Tokens.
      codes: The codebook.
      inverse_temperature: :math:`1/\tau`.
      distance: ``"euclidean"`` or ``"cosine"``.
      mask: True for the tokens that count.
      axis_name: Mapped axis over which the batch is split. The second value is then the global one on every device;
        the first, and the gradients of both, are so after averaging over the axis.

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
    counted = jnp.ones(tokens.shape[0]) if mask is None else mask.reshape(-1).astype(jnp.float32)
    count = jnp.sum(counted)
    if axis_name is not None:
        count = jax.lax.pmean(count, axis_name)
    count = jnp.where(count > 0, count, 1.0)

    @jax.checkpoint
    def sums(tokens: Float[Array, "tokens dim"], counted: Float[Array, " tokens"]):
        log_p = jax.nn.log_softmax(inverse_temperature * similarity(tokens, codes, distance))
        p = jnp.exp(log_p) * counted[:, None]
        return -jnp.sum(p * log_p), jnp.sum(p, axis=0)

    entropy_sum, p_sum = sum_in_chunks(sums, tokens, counted, max(1, LARGEST_CHUNK // codes.shape[0]))
    mean_p = p_sum / count
    of_all = jax.lax.stop_gradient(mean_p if axis_name is None else jax.lax.pmean(mean_p, axis_name))
    log_of_all = jnp.log(jnp.maximum(of_all, jnp.finfo(jnp.float32).tiny))
    # The gradient of the global entropy, per device: averaged over devices it is that of one device.
    slope = -jnp.sum(log_of_all * (mean_p - jax.lax.stop_gradient(mean_p)))
    return entropy_sum / count, -jnp.sum(of_all * log_of_all) + slope


@dataclasses.dataclass(frozen=True)
class Orthogonality:
    """:func:`orthogonality` of the codes, or of those that the batch uses.

    Attributes:
      weight: Factor in the loss.
      active_only: Only codes with a token in the batch.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook_update="gradient", regularizers=(Orthogonality(10.0),))
    """

    weight: float
    active_only: bool = False
    name: ClassVar[str] = "orthogonality"
    needs_learned_codes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("weight", self.weight)

    def __call__(self, vectors: Array, codes: Array, counts: Array, mask, axis_name, distance) -> Float[Array, ""]:
        """The value without the weight."""
        return orthogonality(codes, counts > 0 if self.active_only else None)


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Minus the entropy of the mean assignment: rewards the use of all codes.

    Attributes:
      weight: Factor in the loss.
      inverse_temperature: See :func:`assignment_entropies`.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, regularizers=(Diversity(0.1),))
    """

    weight: float
    inverse_temperature: float = 100.0
    name: ClassVar[str] = "diversity"
    needs_learned_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("weight", self.weight)
        _check_number("inverse_temperature", self.inverse_temperature)

    def __call__(self, vectors: Array, codes: Array, counts: Array, mask, axis_name, distance) -> Float[Array, ""]:
        """The value without the weight."""
        return -_entropies(self, vectors, codes, mask, axis_name, distance)[1]


@dataclasses.dataclass(frozen=True)
class EntropyPenalty:
    """Mean entropy of a token minus the entropy of the mean: decided tokens, and all codes in use.

    Attributes:
      weight: Factor in the loss.
      inverse_temperature: See :func:`assignment_entropies`.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, regularizers=(EntropyPenalty(0.1),))
    """

    weight: float
    inverse_temperature: float = 100.0
    name: ClassVar[str] = "entropy_penalty"
    needs_learned_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("weight", self.weight)
        _check_number("inverse_temperature", self.inverse_temperature)

    def __call__(self, vectors: Array, codes: Array, counts: Array, mask, axis_name, distance) -> Float[Array, ""]:
        """The value without the weight."""
        per_token, batch = _entropies(self, vectors, codes, mask, axis_name, distance)
        return per_token - batch


def _entropies(regularizer: Diversity | EntropyPenalty, vectors: Array, codes: Array, mask, axis_name, distance):
    settings = {"inverse_temperature": regularizer.inverse_temperature, "distance": distance}
    return assignment_entropies(vectors, codes, mask=mask, axis_name=axis_name, **settings)


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise UserError(f"{name}={value!r} is not allowed: use a finite number of at least 0.")
