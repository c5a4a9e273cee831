"""Norm-based pooling of vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.functional.norms import length_and_direction
from vqjax.functional.sharding import with_automatic_axes

Image = Float[Array, "*batch height width channels"]
Pooled = Float[Array, "*batch rows columns channels"]
Windows = Float[Array, "*batch rows columns positions channels"]
Lengths = Float[Array, "*batch rows columns positions"]
Inside = Bool[Array, "*batch rows columns positions"]


@with_automatic_axes(like="x")
def max_vector_pool(x: Image, window: int = 3, stride: int = 2, padding: int = 0, dilation: int = 1) -> Pooled:
    r"""Keep the longest vector of each window.

    .. math:: y = x_j,\quad j = \arg\max_{j \in \text{window}} |x_j|_2

    Unlike the result of max pooling, it is one of the vectors: pooled codes are codes.

    Args:
      x: Feature map, channels last, any leading axes.
      window: Height and width of a window, in positions.
      stride: Step from one window to the next, in positions.
      padding: Positions added on each side; they hold no vector and are never chosen.
      dilation: Step between the positions of a window.

    Returns:
      A map of ``floor((size + 2 padding - dilation (window - 1) - 1) / stride) + 1`` rows and columns. Ties go to the
      first position in row-major order; a window outside of the map gives zero. The gradient goes to the chosen vector.

    Raises:
      UserError: An argument is out of range, or no window fits.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[3.0, 4.0], [0.0, 1.0]], [[1.0, 0.0], [4.5, 0.0]]])
      >>> max_vector_pool(x, window=2, stride=2).tolist()
      [[[3.0, 4.0]]]

    Source: vqtorch (Huh et al., ICML 2023), ``MaxVecPool2d``.
    """
    vectors, lengths, inside = _windows(x, window, stride, padding, dilation)
    longest = jnp.argmax(jnp.where(inside, lengths, -jnp.inf), axis=-1)
    return jnp.take_along_axis(vectors, longest[..., None, None], axis=-2)[..., 0, :]


@with_automatic_axes(like="x")
def softmax_vector_pool(x: Image, window: int = 3, stride: int = 2, padding: int = 0, dilation: int = 1) -> Pooled:
    r"""Average the vectors of each window, with weights that grow with their length.

    .. math:: y = \sum_{j \in \text{window}} w_j x_j,\quad w = \mathrm{sg}\big(\mathrm{softmax}_j |x_j|_2\big)

    Args:
      x: As in :func:`max_vector_pool`.
      window: As in :func:`max_vector_pool`.
      stride: As in :func:`max_vector_pool`.
      padding: As in :func:`max_vector_pool`; these positions have weight zero.
      dilation: As in :func:`max_vector_pool`.

    Returns:
      As :func:`max_vector_pool`. No gradient passes through the weights.

    Raises:
      UserError: As :func:`max_vector_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[[1.0], [-1.0]], [[3.0], [3.0]]])
      >>> round(float(softmax_vector_pool(x, window=2, stride=2)[0, 0, 0]), 4)
      2.6424

    Source: vqtorch (Huh et al., ICML 2023), ``SoftMaxVecPool2d``.
    """
    vectors, lengths, inside = _windows(x, window, stride, padding, dilation)
    # A window outside of the map has no position to weigh.
    weighed = inside | ~jnp.any(inside, axis=-1, keepdims=True)
    weights = jnp.where(inside, jax.nn.softmax(jnp.where(weighed, lengths, -jnp.inf)), 0.0)
    return jnp.sum(weights[..., None] * vectors, axis=-2).astype(x.dtype)


def _windows(x: Image, window: int, stride: int, padding: int, dilation: int) -> tuple[Windows, Lengths, Inside]:
    """Return the vectors of each window, their lengths (held constant), and which positions are inside of the map."""
    for name, value, least in (("window", window, 1), ("stride", stride, 1), ("dilation", dilation, 1)):
        _check_whole(name, value, least)
    _check_whole("padding", padding, 0)
    reach = dilation * (window - 1) + 1
    rows, columns = ((size + 2 * padding - reach) // stride + 1 for size in x.shape[-3:-1])
    if rows < 1 or columns < 1:
        raise UserError(
            f"window must fit into the map, got window={window} with dilation={dilation}, which covers {reach} "
            f"positions, for a map of {x.shape[-3]} by {x.shape[-2]} with padding={padding}; use a smaller window or "
            "more padding."
        )
    lengths = jax.lax.stop_gradient(length_and_direction(x)[0])
    inside = jnp.ones_like(lengths, bool)

    # One strided slice per position of a window, all windows at once.
    def cut(grid: Array) -> Array:
        around = ((padding, padding), (padding, padding), (0, 0))
        grid = jnp.pad(grid, ((0, 0),) * (grid.ndim - 3) + around)
        starts = [(dilation * i, dilation * j) for i in range(window) for j in range(window)]
        down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
        return jnp.stack([grid[..., i : i + down : stride, j : j + right : stride, :] for i, j in starts], axis=-2)

    return cut(x), cut(lengths)[..., 0], cut(inside)[..., 0]


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a {'positive' if least else 'non-negative'} integer, got {value!r}.")
