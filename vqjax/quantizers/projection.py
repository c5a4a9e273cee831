"""Linear maps from a model's features to a quantizer's and back, under the names ``project_in`` and ``project_out``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import UserError


def create_projections(module: nn.Module, outer: int, inner: int) -> None:
    """Creates kernels and biases of both directions, in a compact method.

    Args:
      module: Gets ``project_in_kernel``, ``project_in_bias`` and the same of ``project_out`` in ``params``.
      outer: Features of the model.
      inner: Features of the quantizer.
    """
    for name, shape in (("project_in", (outer, inner)), ("project_out", (inner, outer))):
        module.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        module.param(f"{name}_bias", nn.initializers.zeros, shape[-1:], jnp.float32)


def has_projections(module: nn.Module) -> bool:
    """Whether the variables hold projections."""
    return module.has_variable("params", "project_in_kernel")


def outer_features(module: nn.Module) -> int:
    """The features of the model that the projections were made for."""
    return module.get_variable("params", "project_in_kernel").shape[0]


def inner_features(module: nn.Module) -> int:
    """The features of the codes that the projections were made for."""
    return module.get_variable("params", "project_in_kernel").shape[1]


def project(module: nn.Module, name: str, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch features"]:
    """Applies one of the two maps in float32.

    Args:
      module: Has the variables.
      name: ``"project_in"`` or ``"project_out"``.
      x: Vectors.

    Returns:
      Vectors of the other space.
    """
    kernel, bias = (module.get_variable("params", f"{name}_{part}") for part in ("kernel", "bias"))
    if kernel is None or kernel.shape[0] != x.shape[-1]:
        found = "is missing" if kernel is None else f"has shape {kernel.shape}"
        raise UserError(
            f"The projection {name} of {x.shape[-1]} features {found} in the variables: create them with init(key, z) "
            "of a quantizer with the same settings, and pass all collections on to apply."
        )
    x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return x + jnp.broadcast_to(bias, x.shape)
