"""Quantizer of the CIFAR-10 study, exactly as in its code; it is not the rotation trick."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.functional.codebook import assign
from vqjax.functional.metrics import geometry_statistics, perplexity, usage
from vqjax.functional.search import nearest_codes
from vqjax.quantizers import QuantizerOutput

Vectors = Float[Array, "*batch dim"]

_DECAY = 0.99
_SMOOTHING = 1e-5
_SHORTEST = 1e-5
_NORMALIZE_AT_LEAST = 1e-12


class FaithfulQuantizer(nn.Module):
    r"""Mirrors each vector onto the direction of its code, and passes gradients straight through.

    .. math:: q' = H z,\quad H = I - 2 v v^T,\quad v = \frac{\hat z - \hat e}{|\hat z - \hat e| + 10^{-5}}

    The decoder therefore sees :math:`|z|\,\hat e`: the direction of the code with the length of the encoder's vector,
    which no index carries. Four more things differ from the paper's text and from :class:`vqjax.VectorQuantizer`: the
    codebook is moved by moving averages in the forward pass and by the optimizer after it; with smoothing, so that
    unused codes become the zero vector in the first step; averages also move in evaluation, wherever the collection
    ``codebook`` is mutable; and there is no rotation: the gradient is that of straight-through.

    Variables:
      ``params["codes"]``, moved by the optimizer; ``codebook`` with ``counts``, ``sums`` and ``offsets``, where
      ``params["codes"] + offsets`` is the moving average after the last forward pass plus the optimizer's last step.

    Attributes:
      num_codes: Size of the codebook.
      commitment_weight: Weight of the commitment loss; the codebook loss has weight one.

    Example:
      >>> z = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> module = FaithfulQuantizer(num_codes=16)
      >>> variables = module.init(jax.random.key(1), z)
      >>> out, _ = module.apply(variables, z, train=True, mutable=["codebook"])
      >>> bool(jnp.allclose(jnp.linalg.norm(out.quantized, axis=-1), jnp.linalg.norm(z, axis=-1), rtol=1e-3))
      True

    Source: the code published with the study, HKUDS/AI-Researcher, examples/rotation_vq/project/model/vqvae.py.
    """

    num_codes: int
    commitment_weight: float = 0.25

    @property
    def codebook_sizes(self) -> tuple[int]:
        """One codebook."""
        return (self.num_codes,)

    @nn.compact
    def __call__(self, z: Vectors, mask: None = None, train: bool | None = None) -> QuantizerOutput:
        """Quantize vectors, and move the averages wherever they are mutable.

        Args:
          z: Vectors along the last axis.
          mask: Not used: the batches of the study are whole.
          train: Not used: the code of the study does not distinguish training from evaluation.

        Returns:
          Mirrored vectors, indices, codebook loss plus weighted commitment loss, and metrics.
        """
        del mask, train
        dim = z.shape[-1]
        learned = self.param("codes", initial_codes, (self.num_codes, dim))
        offsets = self.variable("codebook", "offsets", jnp.zeros, (self.num_codes, dim))
        counts = self.variable("codebook", "counts", jnp.zeros, (self.num_codes,))
        sums = self.variable("codebook", "sums", jnp.zeros, (self.num_codes, dim))
        codes = learned + offsets.value
        indices = nearest_codes(z, codes)
        chosen = codes[indices]
        codebook_loss = jnp.mean(jnp.square(jax.lax.stop_gradient(z) - chosen))
        commitment_loss = jnp.mean(jnp.square(z - jax.lax.stop_gradient(chosen)))
        batch = assign(z.reshape(-1, dim), indices.reshape(-1), self.num_codes)
        if self.is_mutable_collection("codebook") and not self.is_initializing():
            counts.value = _DECAY * counts.value + (1 - _DECAY) * batch.counts
            sums.value = _DECAY * sums.value + (1 - _DECAY) * batch.sums
            total = jnp.sum(counts.value)
            smoothed = (counts.value + _SMOOTHING) / (total + self.num_codes * _SMOOTHING) * total
            # The optimizer's next step is added to the average, until the following average overwrites it.
            offsets.value = sums.value / smoothed[:, None] - jax.lax.stop_gradient(learned)
        metrics = {
            "codebook_loss": codebook_loss,
            "commitment_loss": commitment_loss,
            "quantization_error": commitment_loss,
            "perplexity": perplexity(batch.counts),
            "usage": usage(batch.counts),
        }
        metrics |= geometry_statistics(z, chosen, None, None)
        loss = codebook_loss + self.commitment_weight * commitment_loss
        mirrored = z + jax.lax.stop_gradient(_mirrored(z, chosen) - z)
        return QuantizerOutput(mirrored, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors) -> Int[Array, "*batch"]:
        """Return the indices of the nearest codes."""
        return nearest_codes(z, self._codes())

    def decode(self, indices: Int[Array, "*batch"]) -> Vectors:
        """Return the codes, which are all that indices can carry; the call returns other vectors."""
        return self._codes()[indices]

    def _codes(self) -> Float[Array, "codes dim"]:
        return self.get_variable("params", "codes") + self.get_variable("codebook", "offsets")


def initial_codes(key: Array, shape: tuple[int, int], dtype: object = float) -> Float[Array, "codes dim"]:
    """Draw the initial codes of the study: uniform within one over the number of codes.

    Args:
      key: Random key.
      shape: Number of codes and features.
      dtype: Type of the codes.

    Returns:
      The codes.

    Example:
      >>> float(abs(initial_codes(jax.random.key(0), (4, 2))).max()) <= 0.25
      True
    """
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


def _mirrored(z: Vectors, chosen: Vectors) -> Vectors:
    difference = _normalized(z) - _normalized(chosen)
    length = jnp.linalg.norm(difference, axis=-1, keepdims=True)
    v = jnp.where(length > _SHORTEST, difference / (length + _SHORTEST), difference)
    return z - 2 * v * jnp.sum(v * z, axis=-1, keepdims=True)


def _normalized(x: Vectors) -> Vectors:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _NORMALIZE_AT_LEAST)
