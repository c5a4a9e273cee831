"""Radial parts of the gradients of a trained tokenizer, which change the length of its latents."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqjax.models import VQVAE

PUSHES = ("code_push", "cost_of_quantization", "commitment_pull")


def pushes(
    model: VQVAE,
    variables: dict,
    loss: Callable[[Array, Array], Float[Array, ""]],
    batches: Iterable[Float[Array, "batch height width channels"]],
) -> dict[str, float]:
    r"""Measure the radial parts of the gradients that reach the latents.

    With the gradient :math:`g` of the reconstruction loss with respect to the codes, summed over a batch:

    * ``code_push``: :math:`\langle q, g \rangle`, the radial part of the rotation trick;
    * ``cost_of_quantization``: :math:`\langle q - z, g \rangle`; straight-through pushes outward by it, as
      :math:`\langle z, g \rangle = \langle q, g \rangle - \langle q - z, g \rangle`;
    * ``commitment_pull``: :math:`\langle z, \nabla_z L \rangle` of the quantizer's loss, which pulls inward.

    Args:
      model: The autoencoder.
      variables: Its variables.
      loss: Reconstruction loss of reconstructions and images.
      batches: Images in [-1, 1].

    Returns:
      Means over the batches under these names, and their standard errors with ``_error`` appended; ``rms_latents`` and
      ``rms_codes``, the square roots of the mean squares of all features.
    """

    @jax.jit
    def measure(images: Array) -> dict[str, Array]:
        z = model.apply(variables, images, train=False, method="latents")

        def quantize(z: Array) -> tuple[Array, Array]:
            out = model.apply(variables, z, method=lambda model, z: model.quantizer(z, train=False))
            return out.loss, out.quantized

        pull, q = jax.grad(quantize, has_aux=True)(z)

        def of_codes(q: Array) -> Array:
            return loss(model.apply(variables, q, train=False, method="decode_latents"), images)

        g = jax.grad(of_codes)(q)
        return {
            "code_push": jnp.sum(q * g),
            "cost_of_quantization": jnp.sum((q - z) * g),
            "commitment_pull": jnp.sum(z * pull),
            "rms_latents": jnp.mean(jnp.square(z)),
            "rms_codes": jnp.mean(jnp.square(q)),
        }

    rows = [jax.device_get(measure(images)) for images in batches]
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    measured = {name: float(np.mean(columns[name])) for name in PUSHES}
    measured |= {f"{name}_error": float(np.std(columns[name], ddof=1) / len(rows) ** 0.5) for name in PUSHES}
    return measured | {name: float(np.sqrt(np.mean(columns[name]))) for name in ("rms_latents", "rms_codes")}
