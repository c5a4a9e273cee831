"""What every quantizer returns."""

import flax.struct
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class QuantizerOutput:
    """The result of quantizing a batch.

    Attributes:
      quantized: The codes, ``[..., dim]``, in the input's dtype. Their gradient is the estimator's.
      indices: int32 ``[...]``, with several heads ``[..., heads]``; -1 where the mask is False.
      loss: The quantizer's weighted losses, a float32 scalar: add it to the task's loss.
      metrics: float32 scalars by name, without gradient.
    """

    quantized: Float[Array, "*batch dim"]
    indices: Int[Array, "*indices"]
    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
