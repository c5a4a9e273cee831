"""Differentiable vector quantization (DiVeQ): the error as a differentiable length along a constant direction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Vectors, length, with_gradient_of
from vqjax.functional.norms import length_and_direction
from vqjax.functional.numbers import Number, is_weight
from vqjax.functional.search import nearest_codes
from vqjax.functional.sharding import with_automatic_axes


def diveq(z: Vectors, q: Vectors, *, key: Key[Array, ""], variance: Number = 1e-3) -> Vectors:
    r"""Quantize by DiVeQ: the code, up to noise, is reached by a differentiable length along a constant direction.

    .. math:: q' = z + |q - z|\; \mathrm{sg}\!\left(\frac{v}{|v|}\right),\quad v = q - z + \sigma n,\ n \sim N(0, I)

    The gradient reaches ``z`` and ``q``, so that a codebook can learn from the task alone.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.
      key: Random key of the noise.
      variance: :math:`\sigma^2`, at least 0.

    Returns:
      A point at the code's distance from ``z``, close to ``q`` for small variance, in the dtype of ``q``.

    Raises:
      UserError: ``variance`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 0.0])
      >>> print(diveq(z, q, key=jax.random.key(0), variance=0.0))
      [0. 0.]

    Source: Vali et al., 2025 (arXiv 2509.26469).
    """
    _check_variance(variance)
    dtype = q.dtype
    z, q = z.astype(jnp.float32), q.astype(jnp.float32)
    return (z + _step(z, q, key, variance)).astype(dtype)


def diveq_detached(z: Vectors, q: Vectors) -> Vectors:
    r"""Quantize by DiVeQ without noise: the value is the code bit for bit.

    .. math:: \partial q'/\partial z = I - d d^T,\quad \partial q'/\partial q = d d^T,\quad d = (q - z)/|q - z|

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.

    Returns:
      ``q``, with the Jacobians above; straight-through if ``q`` equals ``z``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0])
      >>> print(jax.grad(lambda z: diveq_detached(z, q).sum())(z))
      [0. 1.]

    Source: Vali et al., 2025 (arXiv 2509.26469).
    """
    exact = q
    z, q = z.astype(jnp.float32), q.astype(jnp.float32)
    return with_gradient_of(exact, z + _step(z, q, None, 0.0))


@with_automatic_axes(like="z")
def space_filling_diveq(
    z: Vectors, codes: Float[Array, "codes dim"], *, key: Key[Array, ""], variance: Number = 1e-3
) -> tuple[Vectors, Int[Array, "*batch"]]:
    r"""Quantize by space-filling DiVeQ, to a random point on a line between consecutive codes.

    With one :math:`\lambda_i \sim U(0, 1)` per line and the line whose point is nearest,

    .. math::
      q' = z + (1 - \lambda_i)\,|e_i - z|\;\mathrm{sg}(v_i/|v_i|)
        + \lambda_i\,|e_{i+1} - z|\;\mathrm{sg}(v_{i+1}/|v_{i+1}|)

    The curve through the codes is pulled towards the latents as a whole, so no code is left behind. The quantizer uses
    the nearest code with ``train=False``: a point on a line has no index.

    Args:
      z: Latents, any leading axes.
      codes: The codebook, at least two codes.
      key: Random key.
      variance: Variance of the noise in the directions, see :func:`diveq`.

    Returns:
      The quantized vectors, and the int32 index of the nearer end of each line.

    Raises:
      UserError: There is only one code, or ``variance`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[0.0, 0.0], [2.0, 0.0]])
      >>> quantized, index = space_filling_diveq(jnp.array([[1.0, 1.0]]), codes, key=jax.random.key(0), variance=0.0)
      >>> print(quantized[0, 1].round(4))
      0.0

    Source: Vali et al., 2025 (arXiv 2509.26469).
    """
    if codes.shape[0] < 2:
        raise UserError("num_codes must be at least 2 with space_filling_diveq, got 1; a line needs two ends.")
    _check_variance(variance)
    dtype = codes.dtype
    z, codes = z.astype(jnp.float32), codes.astype(jnp.float32)
    line_key, first_key, second_key = jax.random.split(key, 3)
    # One point per line: the nearest of these points decides the line, and its position is that of the result.
    position = jax.random.uniform(line_key, (codes.shape[0] - 1, 1), jnp.float32)
    points = (1 - position) * codes[:-1] + position * codes[1:]
    line = nearest_codes(z, points)
    share = position[line]
    first = _step(z, codes[line], first_key, variance)
    second = _step(z, codes[line + 1], second_key, variance)
    indices = jnp.where(share[..., 0] < 0.5, line, line + 1)
    return (z + (1 - share) * first + share * second).astype(dtype), indices


def _step(z: Vectors, q: Vectors, key: Array | None, variance: Number) -> Vectors:
    """Return the step from ``z`` to ``q``, with the gradient of its length alone; without a key, no noise."""
    difference = q - z
    noisy = jax.lax.stop_gradient(difference)
    if key is not None:
        noisy += jnp.sqrt(variance) * jax.random.normal(key, z.shape, jnp.float32)
    _, direction = length_and_direction(noisy)
    return length(difference) * direction


def _check_variance(variance: Number) -> None:
    if not is_weight(variance):
        raise UserError(f"variance must be a finite number of at least 0, got {variance!r}; use 1e-3, for example.")


def noise_substitution(z: Vectors, q: Vectors, *, key: Key[Array, ""]) -> Vectors:
    r"""Quantize by noise substitution (NSVQ): the error is replaced by noise of the same length.

    .. math:: q' = z + |z - q|\, n/|n|,\quad n \sim N(0, I)

    The gradient reaches ``z``, and the codes through the length of the error.

    Args:
      z: Latents, any leading axes.
      q: The codes assigned to them, of the same shape.
      key: Random key of the noise.

    Returns:
      A random point at the code's distance from ``z``, in the dtype of ``q``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z, q = jnp.array([3.0, 4.0]), jnp.array([0.0, 0.0])
      >>> moved = noise_substitution(z, q, key=jax.random.key(0))
      >>> print(jnp.linalg.norm(moved - z).round(4))
      5.0

    Source: Vali and Bäckström, IEEE Access 2022 ("NSVQ").
    """
    dtype = q.dtype
    z, q = z.astype(jnp.float32), q.astype(jnp.float32)
    _, direction = length_and_direction(jax.random.normal(key, z.shape, jnp.float32))
    return (z + length(z - q) * direction).astype(dtype)
