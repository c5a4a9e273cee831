"""A random rotation of features, drawn once and never trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError


def create_rotation(module: nn.Module, features: int) -> None:
    """Draws ``codebook["rotation"]`` of a module, in ``init``."""
    draw = nn.initializers.orthogonal()
    module.variable(
        "codebook", "rotation", lambda: draw(module.make_rng("quantizer"), (features, features), jnp.float32)
    )


def rotate(
    module: nn.Module, x: Float[Array, "*batch features"], inverse: bool = False
) -> Float[Array, "*batch features"]:
    """Rotates features by the module's rotation, or back.

    Args:
      module: Has been through :func:`create_rotation`.
      x: Features.
      inverse: Rotate back.

    Returns:
      Features of the same lengths.

    Raises:
      UserError: The variables hold no rotation.
    """
    if not module.has_variable("codebook", "rotation"):
        raise UserError(
            "The variables hold no rotation: create them with init(key, z), and pass all collections on to apply, not "
            "params alone."
        )
    rotation = module.get_variable("codebook", "rotation")
    if rotation.shape[0] != x.shape[-1]:
        raise UserError(
            f"The rotation in the variables has shape {rotation.shape}, and codes have {x.shape[-1]} features: use the "
            "settings it was made with, or initialize anew."
        )
    return jnp.matmul(x, rotation.T if inverse else rotation, precision=jax.lax.Precision.HIGHEST)
