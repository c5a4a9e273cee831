"""Base classes of metrics, which compute named numbers from a model's outputs and say how they are measured."""

import abc
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Outputs = dict[str, Array]
"""Arrays that metrics consume: those of the batch (``image``, uint8 in [0, 255]; ``valid``), and what the model
computes from it, such as ``reconstruction``, in [-1, 1], and ``indices``."""

Numbers = dict[str, float | int | None]
"""Results by name; None if a metric does not apply."""


class Metric(flax.struct.PyTreeNode, abc.ABC):
    """Base class of metrics: one or more named numbers, each with its protocol, a description of how it is measured.

    A metric processes a batch in two steps: ``measure`` is compiled into the program that evaluates a batch, and
    reduces the outputs to the few arrays that the metric needs; ``update`` adds these up on the host, in double
    precision. After the last batch, ``compute`` returns the numbers.

    A metric is a pytree: declare settings with ``flax.struct.field(pytree_node=False)``, and weights, such as those of
    a feature network, as ordinary fields, which are then arguments of the compiled program.

    Example:
      >>> class Brightness(Metric):
      ...     @property
      ...     def protocol(self):
      ...         return {"brightness": "largest pixel value of the split"}
      ...
      ...     def measure(self, outputs):
      ...         return jnp.max(jnp.where(outputs["valid"][:, None, None, None], outputs["image"], 0))
      ...
      ...     def init(self):
      ...         return 0
      ...
      ...     def update(self, state, measured):
      ...         return max(state, int(measured))
      ...
      ...     def compute(self, state):
      ...         return {"brightness": state}
      >>> metric = Brightness()
      >>> outputs = {"image": jnp.full([2, 8, 8, 3], 7, jnp.uint8), "valid": jnp.array([True, False])}
      >>> metric.compute(metric.update(metric.init(), metric.measure(outputs)))
      {'brightness': 7}
    """

    @property
    @abc.abstractmethod
    def protocol(self) -> dict[str, str]:
        """Protocol of each number, by its name."""

    @abc.abstractmethod
    def measure(self, outputs: Outputs) -> PyTree[Array]:
        """Reduce the outputs of one batch to what ``update`` needs; pure, and compiled.

        Args:
          outputs: Scalars, and arrays with one row per image; rows where ``valid`` is False are padding.
        """

    @abc.abstractmethod
    def init(self) -> Any:
        """Return the state before the first batch."""

    @abc.abstractmethod
    def update(self, state: Any, measured: PyTree[Array]) -> Any:
        """Return the state after one more batch; ``measured`` is what ``measure`` returned for it."""

    @abc.abstractmethod
    def compute(self, state: Any) -> Numbers:
        """Return the numbers of all batches, in the order in which reports show them."""


class ImageMean(Metric):
    """Base class of metrics that average a value per image over the split.

    Example:
      >>> class Brightness(ImageMean):
      ...     @property
      ...     def protocol(self):
      ...         return {"brightness": "mean pixel value, mean over images"}
      ...
      ...     def per_image(self, outputs):
      ...         return {"brightness": jnp.mean(outputs["image"], axis=(1, 2, 3))}
      >>> metric = Brightness()
      >>> outputs = {"image": jnp.full([2, 8, 8, 3], 7, jnp.uint8), "valid": jnp.array([True, False])}
      >>> metric.compute(metric.update(metric.init(), metric.measure(outputs)))
      {'brightness': 7.0}
    """

    @abc.abstractmethod
    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        """Return values for each image, by name; pure, and compiled."""

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        valid = outputs["valid"]
        # A padded image may give NaN, which a product with zero would let through.
        sums = {name: jnp.sum(jnp.where(valid, values, 0)) for name, values in self.per_image(outputs).items()}
        return {"images": jnp.sum(valid), **sums}

    def init(self) -> dict[str, float]:
        return {}

    def update(self, state: dict[str, float], measured: PyTree[Array]) -> dict[str, float]:
        return {name: state.get(name, 0.0) + float(value) for name, value in measured.items()}

    def compute(self, state: dict[str, float]) -> Numbers:
        return {name: total / state["images"] for name, total in state.items() if name != "images"}
