"""k-means clustering, from random latents or by k-means++."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.codebook import Codebook, Latents, Mask, assign, ema_update, init_codebook, sample_latents
from vqjax.functional.search import nearest_codes
from vqjax.functional.sharding import with_automatic_axes


@with_automatic_axes()
def kmeans(
    key: Key[Array, ""],
    z: Latents,
    num_codes: int,
    *,
    iterations: int = 10,
    unit_norm: bool = False,
    mask: Mask | None = None,
    start: str | Float[Array, "codes dim"] = "random",
) -> Codebook:
    """Initialize a codebook with the clusters of a batch (Lloyd's algorithm).

    A cluster that receives no token keeps its previous mean. With fewer tokens than codes some codes start equal;
    the lowest of them gets the tokens, and the others are left to dead-code replacement. To cluster several batches,
    concatenate them.

    Args:
      key: Random key for the initial means.
      z: Latents.
      num_codes: Number of clusters.
      iterations: Number of assignments and averages.
      unit_norm: Scale means to length one (spherical k-means of unit latents).
      mask: True for the tokens that count, at least one; all by default.
      start: Initial means: ``"random"`` latents, ``"plus_plus"`` (:func:`kmeans_plus_plus`), or an array of means.

    Returns:
      The codebook, with the counts and sums of the last assignment.

    Raises:
      UserError: ``start`` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z = jnp.array([[0.0], [0.2], [9.0], [9.2]])
      >>> state = kmeans(jax.random.key(0), z, 2)
      >>> [round(code, 3) for code in sorted(state.codes[:, 0].tolist())]
      [0.1, 9.1]
    """
    if not isinstance(start, str):
        means = start
    elif start not in ("random", "plus_plus"):
        raise UserError(f"start must be 'random', 'plus_plus' or an array of means, got {start!r}.")
    else:
        means = (sample_latents if start == "random" else kmeans_plus_plus)(key, z, num_codes, mask)

    def step(_: Int[Array, ""], codebook: Codebook) -> Codebook:
        batch = assign(z, nearest_codes(z, codebook.codes), num_codes, mask)
        # Without decay the moving average is the mean of this batch.
        return ema_update(codebook, batch, decay=0.0, unit_norm=unit_norm)

    return jax.lax.fori_loop(0, iterations, step, init_codebook(means))


@with_automatic_axes()
def kmeans_plus_plus(
    key: Key[Array, ""], z: Latents, count: int, mask: Mask | None = None
) -> Float[Array, "count dim"]:
    r"""Draw latents that are far from each other.

    Each is drawn with a probability proportional to the squared distance to the nearest of those before it.

    Args:
      key: Random key.
      z: Latents.
      count: Number to draw. Once every distinct latent is drawn, the rest are drawn uniformly.
      mask: True for the tokens that may be drawn, at least one; all by default.

    Returns:
      ``[count, dim]``, float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> z = jnp.array([[0.0], [0.0], [0.0], [0.0], [9.0]])
      >>> sorted(kmeans_plus_plus(jax.random.key(0), z, 2)[:, 0].tolist())
      [0.0, 9.0]

    Source: Arthur and Vassilvitskii, 2007 ("k-means++: the advantages of careful seeding").
    """
    z = jax.lax.stop_gradient(z).astype(jnp.float32)
    # A masked token may hold NaN, and so would its distances.
    z = z if mask is None else jnp.where(mask[:, None], z, 0.0)
    allowed = jnp.zeros(z.shape[0], jnp.float32) if mask is None else jnp.where(mask, 0.0, -jnp.inf)

    def draw(i: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, distance = carry
        by_distance = allowed + jnp.log(distance)
        # If all distances are zero, every distinct latent has been drawn.
        logits = jnp.where(jnp.any(jnp.isfinite(by_distance)), by_distance, allowed)
        token = z[jax.random.categorical(jax.random.fold_in(key, i), logits)]
        distance = jnp.minimum(distance, jnp.sum(jnp.square(z - token[None]), axis=-1))
        return drawn.at[i].set(token), distance

    # Made from the tokens, because shard_map checks that the carry varies over the same devices as they do. Before
    # the first draw all latents are equally far.
    start = (jnp.zeros_like(z[:1]) + jnp.zeros((count, 1), z.dtype), jnp.full_like(z[:, 0], jnp.finfo(jnp.float32).max))
    return jax.lax.fori_loop(0, count, draw, start)[0]
