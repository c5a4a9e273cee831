"""Base classes of metrics, which compute named numbers from a model's outputs and say how they are measured."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Float64, PyTree

Outputs = dict[str, Array]
"""Arrays that metrics consume: those of the batch (``image``, uint8 in [0, 255]; ``valid``), and what the model
computes from it, such as ``reconstruction``, in [-1, 1], and ``indices``."""

Numbers = dict[str, float | int | None]
"""Results by name; None if a metric does not apply."""

Intervals = dict[str, tuple[float, float]]
"""Lower and upper end of the 95 % interval of a number, by its name."""

_RESAMPLES = 1000


class Metric(flax.struct.PyTreeNode, abc.ABC):
    """Base class of metrics: one or more named numbers, each with its protocol, a description of how it is measured.

    A metric processes a batch in two steps: ``measure`` is compiled into the program that evaluates a batch, and
    reduces the outputs to the few arrays that the metric needs; ``update`` adds these up on the host, in double
    precision. After the last batch, ``compute`` returns the numbers.

    A metric is a pytree: declare settings with ``flax.struct.field(pytree_node=False)``, and weights, such as those of
    a feature network, as ordinary fields, which are then arguments of the compiled program.

    Example:
      >>> import jax.numpy as jnp
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
        """Return the state before the first batch.

        A state of dictionaries, tuples and named tuples of arrays, numbers and None can be stored, so that an
        evaluation that was interrupted goes on; ``update`` may append to its tuples.
        """

    @abc.abstractmethod
    def update(self, state: Any, measured: PyTree[Array]) -> Any:
        """Return the state after one more batch; ``measured`` is what ``measure`` returned for it."""

    @abc.abstractmethod
    def compute(self, state: Any) -> Numbers:
        """Return the numbers of all batches, in the order in which reports show them."""

    def intervals(self, state: Any) -> Intervals:
        """Return 95 % intervals of those numbers of which they are known; none by default."""
        del state
        return {}


class ImageMean(Metric):
    """Base class of metrics that average a value per image over the split.

    Attributes:
      higher_is_better: Whether higher values are those of better reconstructions, by the name of the value. The page of
        an evaluation shows the best and the worst images by these.

    Example:
      >>> import jax.numpy as jnp
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

    higher_is_better: ClassVar[Mapping[str, bool]] = {}

    @abc.abstractmethod
    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        """Return values for each image, by name; pure, and compiled."""

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return {"valid": outputs["valid"], **self.per_image(outputs)}

    def init(self) -> tuple[dict[str, np.ndarray], ...]:
        return ()

    def update(
        self, state: tuple[dict[str, np.ndarray], ...], measured: PyTree[Array]
    ) -> tuple[dict[str, np.ndarray], ...]:
        return (*state, valid_rows(measured))

    def compute(self, state: tuple[dict[str, np.ndarray], ...]) -> Numbers:
        names, values = _table(state)
        return self.numbers(dict(zip(names, values.mean(axis=1).tolist(), strict=True)))

    def numbers(self, means: dict[str, float]) -> Numbers:
        """Return the numbers of a split from the means of the values per image, which they are by default."""
        return means

    def intervals(self, state: tuple[dict[str, np.ndarray], ...]) -> Intervals:
        """Return percentiles over means of images that are drawn anew, with replacement (Efron, 1979)."""
        names, values = _table(state)
        images, rng = values.shape[1], np.random.default_rng(0)
        drawn: dict[str, list[float]] = {}
        for _ in range(_RESAMPLES):
            times = np.bincount(rng.integers(images, size=images), minlength=images)
            for name, number in self.numbers(dict(zip(names, (values @ times / images).tolist(), strict=True))).items():
                if number is not None:
                    drawn.setdefault(name, []).append(number)
        ends = {name: np.quantile(numbers, (0.025, 0.975)).tolist() for name, numbers in drawn.items()}
        return {name: (low, high) for name, (low, high) in ends.items()}


def valid_rows(measured: PyTree[Array]) -> dict[str, np.ndarray]:
    """Return arrays with a row per image without the rows of padding, on the host.

    Args:
      measured: Arrays by name, with ``valid``, which is left out of the result.

    Example:
      >>> import jax.numpy as jnp
      >>> valid_rows({"indices": jnp.array([[3], [5]]), "valid": jnp.array([True, False])})["indices"].tolist()
      [[3]]
    """
    rows = {name: np.asarray(values) for name, values in measured.items()}
    valid = rows.pop("valid")
    return {name: values[valid] for name, values in rows.items()}


def _table(state: tuple[dict[str, np.ndarray], ...]) -> tuple[list[str], Float64[np.ndarray, "names images"]]:
    """Names and values of all images."""
    names = list(state[0])
    rows = [np.concatenate([values[name] for values in state]) for name in names]
    return names, np.asarray(rows, np.float64) if rows else np.zeros((0, 1))
