"""Collectors: metrics that keep rows of the outputs instead of numbers, for pictures and token files."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vqjax.data import to_uint8
from vqjax.evaluation.metric import Metric, Outputs


class Collector(Metric):
    """Base class of metrics without numbers: ``compute`` returns arrays by name, with one row per image."""

    @property
    def protocol(self) -> dict[str, str]:
        return {}

    def init(self) -> tuple[dict[str, np.ndarray], ...]:
        return ()

    def update(self, state: tuple[dict[str, np.ndarray], ...], measured: PyTree[Array]) -> Any:
        rows = {name: np.asarray(values) for name, values in measured.items()}
        valid = rows.pop("valid")
        return (*state, {name: values[valid] for name, values in rows.items()})

    def compute(self, state: tuple[dict[str, np.ndarray], ...]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([rows[name] for rows in state]) for name in state[0]}


class Pictures(Collector):
    """The first images of a split together with the model's outputs for them, as uint8.

    Attributes:
      names: Outputs to keep; those of a float type are images in [-1, 1].
      limit: Maximum number of images to keep.

    Example:
      >>> outputs = {"image": jnp.zeros([2, 4, 4, 3], jnp.uint8), "reconstruction": jnp.ones([2, 4, 4, 3])}
      >>> pictures = Pictures(limit=1)
      >>> measured = pictures.measure(outputs | {"valid": jnp.ones(2, bool)})
      >>> pictures.compute(pictures.update(pictures.init(), measured))["reconstruction"].shape
      (1, 4, 4, 3)
    """

    names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=("image", "reconstruction"))
    limit: int = flax.struct.field(pytree_node=False, default=16)

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        first = {name: outputs[name][: self.limit] for name in ("valid", *self.names)}
        return {name: to_uint8(x) if jnp.issubdtype(x.dtype, jnp.floating) else x for name, x in first.items()}

    def update(self, state: tuple[dict[str, np.ndarray], ...], measured: PyTree[Array]) -> Any:
        missing = self.limit - sum(len(rows[self.names[0]]) for rows in state)
        if missing <= 0:
            return state
        *before, rows = super().update(state, measured)
        return (*before, {name: values[:missing] for name, values in rows.items()})


class Rows(Collector):
    """Outputs of all images of a split, such as their indices.

    Attributes:
      names: Outputs to keep.

    Example:
      >>> rows = Rows(("indices",))
      >>> measured = rows.measure({"indices": jnp.array([[3], [5]]), "valid": jnp.array([True, False])})
      >>> rows.compute(rows.update(rows.init(), measured))["indices"].tolist()
      [[3]]
    """

    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return {name: outputs[name] for name in ("valid", *self.names)}
