"""What a multi-scale quantizer does to an interpolated map."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class Refinement(nn.Module):
    r"""A convolution over three positions along each axis of space, mixed with the map itself.

    .. math:: \phi(x) = (1 - \rho)\, x + \rho\, \mathrm{conv}(x)

    Attributes:
      amount: :math:`\rho`, in [0, 1]; 0 has no convolution.
      spatial_dims: Number of axes of space.

    Source: Tian et al., 2024 (arXiv 2404.02905), Section 3.2; the mixture is that of the authors' code.
    """

    amount: float
    spatial_dims: int

    @nn.compact
    def __call__(self, x: Float[Array, "*space dim"]) -> Float[Array, "*space dim"]:
        """Refines a map."""
        if self.amount == 0:
            return x
        window = (3,) * self.spatial_dims
        convolution = nn.Conv(x.shape[-1], window, precision=jax.lax.Precision.HIGHEST, name="convolution")
        return (1 - self.amount) * x + self.amount * convolution(x)
