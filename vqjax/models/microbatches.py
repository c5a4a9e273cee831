"""A batch that passes through a module in parts, one after another, to fit into memory."""

import flax.linen as nn
from jaxtyping import Array, Float


def in_microbatches(
    module: nn.Module, batch: Float[Array, "batch ..."], microbatches: int
) -> Float[Array, "batch ..."]:
    """Applies a module to a batch in parts, and keeps nothing of a part but its result.

    The gradient computes each part again. Values and gradients are those of the whole batch, up to the order in which
    the gradient's sums are added: what comes after the module, such as a codebook's update, sees one batch.

    Args:
      module: Treats every row of the batch for itself; has no variables but parameters.
      batch: Rows of anything.
      microbatches: The number of parts, a divisor of the number of rows.

    Returns:
      What the module makes of the batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> class Halves(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return in_microbatches(nn.Dense(3), x, 2)
      >>> Halves().init_with_output(jax.random.key(0), jnp.ones((4, 5)))[0].shape
      (4, 3)
    """
    if microbatches == 1:
        return module(batch)
    # Every part has rows of every device, so that none has to send its rows to another.
    parts = batch.reshape(-1, microbatches, *batch.shape[1:]).swapaxes(0, 1)

    def one(module: nn.Module, _: None, part: Float[Array, "part ..."]) -> tuple[None, Float[Array, "part ..."]]:
        return None, module(part)

    # Inside a loop the compiler cannot merge the second computation with the first.
    again_in_the_gradient = nn.remat(one, prevent_cse=False)
    in_turn = nn.scan(again_in_the_gradient, variable_broadcast="params", split_rngs={"params": False})
    _, results = in_turn(module, None, parts)
    return results.swapaxes(0, 1).reshape(len(batch), *results.shape[2:])
