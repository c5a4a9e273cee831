"""The index-backpropagation estimator: the code of the largest inner product, with the gradient of a softmax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.errors import UserError
from vqjax.estimators.jacobian import Vectors, with_gradient_of
from vqjax.functional.chunks import map_in_chunks
from vqjax.functional.numbers import Number, is_positive
from vqjax.functional.sharding import with_automatic_axes

Codes = Float[Array, "codes dim"]


@with_automatic_axes(like="z")
def largest_inner_product(z: Vectors, codes: Codes) -> Int[Array, "*batch"]:
    r"""Find the code with the largest inner product with each latent.

    .. math:: i(z) = \arg\max_k\, z \cdot (e_k - m),\quad m = \mathrm{mean}_k\, e_k

    Centering the codes changes no maximum and keeps the products small. Products have float32 accuracy on every
    backend, and no [tokens, codes] matrix larger than a chunk is made. Longer codes are chosen more often, unlike in
    :func:`vqjax.functional.nearest_codes`.

    Args:
      z: Latents, any leading axes, any floating-point dtype.
      codes: The codebook.

    Returns:
      int32 indices in ``[0, codes)``; ties go to the lowest index. No gradient passes.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
      >>> print(largest_inner_product(jnp.array([[0.9, 0.0], [0.1, 1.0]]), codes))
      [0 2]
    """
    z, codes = jax.lax.stop_gradient((z, codes))
    centered = _centered(codes)

    def of_chunk(tokens: Float[Array, "tokens dim"]) -> Int[Array, " tokens"]:
        return jnp.argmax(_products(tokens, centered), axis=-1).astype(jnp.int32)

    return map_in_chunks(of_chunk, z, codes.shape[0])


@with_automatic_axes(like="z")
def index_backpropagation(
    z: Vectors, codes: Codes, *, temperature: Number = 1.0
) -> tuple[Vectors, Int[Array, "*batch"]]:
    r"""Choose codes by inner product, with a straight-through gradient of the index instead of the vector.

    .. math::
      q = \sum_k \big(h_k + p_k - \mathrm{sg}(p_k)\big)\, e_k,\quad h = \mathrm{onehot}\big(\arg\max_k z \cdot e_k\big),
      \quad p = \mathrm{softmax}_k(z \cdot e_k / \tau)

    The gradient reaches ``z`` and, through :math:`p`, every code; the chosen code has the plain gradient as well. The
    softmax is computed in chunks of tokens, again in the backward pass.

    Args:
      z: Latents, any leading axes.
      codes: The codebook.
      temperature: :math:`\tau`, above 0.

    Returns:
      The chosen codes, bit for bit, and their int32 indices.

    Raises:
      UserError: ``temperature`` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> codes = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
      >>> quantized, indices = index_backpropagation(jnp.array([[0.9, 0.1]]), codes)
      >>> quantized.tolist(), indices.tolist()
      ([[1.0, 0.0]], [0])
      >>> slope = jax.grad(lambda codes: index_backpropagation(jnp.array([[0.9, 0.1]]), codes)[0][0, 0])(codes)
      >>> bool((slope != 0).any(axis=1).all())
      True

    Source: Shi et al., ICCV 2025 (arXiv 2412.02692), Section 3.2.
    """
    if not is_positive(temperature):
        raise UserError(f"temperature must be a finite number above 0, got {temperature!r}; use 1.0 for no scaling.")
    indices = largest_inner_product(z, codes)
    centered = _centered(codes)
    constant = jax.lax.stop_gradient(centered)

    # The codes that are mixed are constant: their gradient is that of the choice, through the softmax alone.
    def mixture(tokens: Float[Array, "tokens dim"]) -> Float[Array, "tokens dim"]:
        soft = jax.nn.softmax(_products(tokens, centered) / temperature)
        return jnp.matmul(soft, constant, precision=jax.lax.Precision.HIGHEST)

    chosen = codes[indices]
    mixed = map_in_chunks(jax.checkpoint(mixture), z, codes.shape[0])
    return with_gradient_of(chosen, chosen + mixed.astype(chosen.dtype)), indices


def _centered(codes: Codes) -> Codes:
    codes = codes.astype(jnp.float32)
    return codes - jax.lax.stop_gradient(jnp.mean(codes, axis=0, keepdims=True))


def _products(tokens: Float[Array, "tokens dim"], codes: Codes) -> Float[Array, "tokens codes"]:
    return jnp.matmul(tokens, codes.T, precision=jax.lax.Precision.HIGHEST)
