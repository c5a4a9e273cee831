"""Initializers of codes by name."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vqjax.quantizers.validation import require

Codes = Float[Array, "codes dim"]
Initializer = Callable[..., Array | nn.meta.AxisMetadata]


def _uniform_to(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike, bound: float) -> Codes:
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _inverse_size(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Codes:
    return _uniform_to(key, shape, dtype, 1 / shape[0])


def _kaiming_of_whole(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Codes:
    # PyTorch takes the codebook [1, codes, dim] for the weights of one unit.
    return _uniform_to(key, shape, dtype, (6 / (shape[0] * shape[1])) ** 0.5)


INITIALIZERS: dict[str, Initializer] = {
    "unit_uniform": nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0),
    "unit_normal": nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0),
    "normal": nn.initializers.normal(1.0),
    "inverse_size": _inverse_size,
    "kaiming": _kaiming_of_whole,
}
"""Initializers of codes ``[codes, dim]`` by name.

``unit_uniform`` and ``unit_normal`` have variance 1/dim, so that the expected squared length of a code is one for any
dim and number of codes; ``normal`` is the standard normal distribution, as in enhancing-transformers; ``inverse_size``
is uniform up to one over the number of codes, as in taming-transformers and latent diffusion; ``kaiming`` is uniform
with variance 2 / (codes dim), as in vector-quantize-pytorch.
"""


def get_initializer(init: str | Initializer) -> Initializer:
    """Return the initializer of a name, or the one that is given.

    Args:
      init: A name in :data:`INITIALIZERS`, or a function of key, shape and dtype.

    Raises:
      UserError: It is neither.

    Example:
      >>> codes = get_initializer("inverse_size")(jax.random.key(0), (16, 4), jnp.float32)
      >>> bool((abs(codes) <= 1 / 16).all())
      True
    """
    known = callable(init) or (isinstance(init, str) and init in INITIALIZERS)
    names = ", ".join(map(repr, INITIALIZERS))
    require(known, "codebook_init", init, f"an initializer such as nn.initializers.normal(1.0), or one of {names}")
    return INITIALIZERS[init] if isinstance(init, str) else init
