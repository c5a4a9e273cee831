"""Quantizer dropout: each example of a batch keeps its first levels only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def draw_depths(
    key: Key[Array, ""],
    num_examples: int,
    num_levels: int,
    *,
    probability: float,
    fewest: int = 1,
    multiple_of: int = 1,
) -> Int[Array, " examples"]:
    """Draws how many levels each example keeps.

    With ``probability`` an example keeps a number drawn evenly from ``[fewest, num_levels]``, rounded up to a
    multiple of ``multiple_of``; otherwise all.

    Args:
      key: Random key.
      num_examples: Examples of the batch.
      num_levels: Levels there are.
      probability: Of dropping levels, in [0, 1].
      fewest: Levels always kept.
      multiple_of: Structure of the depths, such as 4 where bit rates come in steps of four levels.

    Returns:
      int32 depths in ``[fewest, num_levels]``.

    Example:
      >>> import jax
      >>> draw_depths(jax.random.key(0), 3, num_levels=8, probability=0.0).tolist()
      [8, 8, 8]

    Source: Zeghidour et al., 2021 (arXiv 2107.03312), Section III-C; the probability is that of Kumar et al., 2023
    (arXiv 2306.06546), Section 3.3.
    """
    coin_key, depth_key = jax.random.split(key)
    depths = jax.random.randint(depth_key, (num_examples,), fewest, num_levels + 1)
    depths = jnp.minimum(-(-depths // multiple_of) * multiple_of, num_levels)
    drops = jax.random.bernoulli(coin_key, float(probability), (num_examples,))
    return jnp.where(drops, depths, num_levels).astype(jnp.int32)
