"""Collectors: metrics that keep rows of the outputs instead of numbers, for pictures and token files."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vqjax.data import to_uint8
from vqjax.evaluation.metric import ImageMean, Metric, Outputs, valid_rows
from vqjax.functional.clips import filmstrips, tokens_of_filmstrips

_FRAMES = 5


class Collector(Metric):
    """Base class of metrics without numbers: ``compute`` returns arrays by name, with one row per image."""

    @property
    def protocol(self) -> dict[str, str]:
        return {}

    def init(self) -> tuple[dict[str, np.ndarray], ...]:
        return ()

    def update(self, state: tuple[dict[str, np.ndarray], ...], measured: PyTree[Array]) -> Any:
        return (*state, valid_rows(measured))

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


class BestAndWorst(Collector):
    """The best and worst images of a split by each value per image of metrics, and its first ones, as uint8.

    Keeps ``LIST/image``, ``LIST/reconstruction``, ``LIST/indices``, ``LIST/label`` and ``LIST/index`` (the place in
    the split), as far as the outputs have them, of clips as filmstrips, and ``LIST/VALUE`` for each value, where LIST
    is ``first``, or such as ``psnr/best`` and ``psnr/worst``, each with its extreme first. A value that is not a number
    is the worst. Only the rows of these lists leave the devices, and no more are kept, however large the split. Nothing
    is kept where the outputs have no reconstructions.

    Attributes:
      metrics: Metrics that say what is better (``higher_is_better``); others are left out. What they compute for each
        image is shared with these metrics themselves within the program of an evaluation.
      count: Number of best, and of worst images by each value.
      first: Number of first images.

    Example:
      >>> from vqjax.evaluation.metrics import PSNR
      >>> images = jnp.full([2, 4, 4, 3], 255, jnp.uint8)
      >>> outputs = {"image": images, "reconstruction": jnp.zeros([2, 4, 4, 3]).at[1].set(0.5), "index": jnp.arange(2)}
      >>> collector = BestAndWorst((PSNR(),), count=1)
      >>> measured = collector.measure(outputs | {"valid": jnp.ones(2, bool)})
      >>> kept = collector.compute(collector.update(collector.init(), measured))
      >>> kept["psnr/best/index"].tolist(), kept["psnr/worst/index"].tolist(), kept["first/index"].tolist()
      ([1], [0], [0, 1])
    """

    metrics: tuple[ImageMean, ...]
    count: int = flax.struct.field(pytree_node=False, default=4)
    first: int = flax.struct.field(pytree_node=False, default=8)

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        if "reconstruction" not in outputs:
            return {}
        values, badness = {}, {}
        for metric in self.metrics:
            of_images = metric.per_image(outputs)
            for name, higher_is_better in metric.higher_is_better.items():
                if name in of_images:
                    values[name] = of_images[name]
                    bad = -values[name] if higher_is_better else values[name]
                    badness[name] = jnp.where(jnp.isnan(bad), jnp.inf, bad)
        kept = {name: outputs[name] for name in ("image", "indices", "label", "index") if name in outputs} | values
        kept["reconstruction"] = to_uint8(outputs["reconstruction"])
        if "video" in outputs:
            kept |= _as_filmstrips(outputs["video"], kept.pop("reconstruction"), kept.pop("indices", None))
        keys = {"first": jnp.zeros(len(outputs["valid"]))}
        for name, bad in badness.items():
            keys |= {f"{name}/best": bad, f"{name}/worst": -bad}
        measured = {}
        for list_name, key in keys.items():
            order = jnp.lexsort((key, ~outputs["valid"]))[: self._limit(list_name)]
            columns = kept | {"valid": outputs["valid"], "key": key}
            measured[list_name] = {name: column[order] for name, column in columns.items()}
        return measured

    def update(self, state: tuple[dict[str, Any], ...], measured: PyTree[Array]) -> Any:
        lists = {}
        for list_name, columns in measured.items():
            rows = valid_rows(columns)
            if state:
                rows = {name: np.concatenate([state[0][list_name][name], new]) for name, new in rows.items()}
            order = np.argsort(rows["key"], kind="stable")[: self._limit(list_name)]
            lists[list_name] = {name: column[order] for name, column in rows.items()}
        return (lists,)

    def compute(self, state: tuple[dict[str, Any], ...]) -> dict[str, np.ndarray]:
        return {
            f"{list_name}/{name}": column
            for list_name, rows in state[0].items()
            for name, column in rows.items()
            if name != "key"
        }

    def _limit(self, list_name: str) -> int:
        return self.first if list_name == "first" else self.count


def _as_filmstrips(clips: Array, reconstruction: Array, indices: Array | None) -> dict[str, Array]:
    """Clips as images, with a frame for each grid of their indices, if these are grids of frames."""
    if indices is None or indices.ndim < 4 or indices.shape[1] > clips.shape[1]:
        return {"image": filmstrips(clips, _FRAMES), "reconstruction": filmstrips(reconstruction, _FRAMES)}
    strips = {"image": clips, "reconstruction": reconstruction}
    strips = {name: filmstrips(x, indices.shape[1]) for name, x in strips.items()}
    return strips | {"indices": tokens_of_filmstrips(indices)}


class CodeCounts(Collector):
    """How often each code of a split is used, per codebook: ``code_counts_0`` and so on.

    Attributes:
      num_codes: Number of codes of each codebook, as of :class:`vqjax.evaluation.CodeUsage`.

    Example:
      >>> counts = CodeCounts(num_codes=3)
      >>> measured = counts.measure({"indices": jnp.array([[2, 0], [1, 1]]), "valid": jnp.array([True, False])})
      >>> counts.compute(counts.update(counts.init(), measured))["code_counts_0"].tolist()
      [1, 0, 1]
    """

    num_codes: int | tuple[int, ...] = flax.struct.field(pytree_node=False)

    def init(self) -> tuple[np.ndarray, ...]:
        sizes = self.num_codes if isinstance(self.num_codes, tuple) else (self.num_codes,)
        return tuple(np.zeros(size, np.int64) for size in sizes)

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return {"valid": outputs["valid"], "indices": outputs["indices"]}

    def update(self, state: tuple[np.ndarray, ...], measured: PyTree[Array]) -> Any:
        indices = np.asarray(measured["indices"])[np.asarray(measured["valid"])].reshape(-1, len(state))
        return tuple(
            # Negative ones stand for no token.
            before + np.bincount(codes[codes >= 0], minlength=len(before))
            for before, codes in zip(state, indices.T, strict=True)
        )

    def compute(self, state: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        return {f"code_counts_{codebook}": counts for codebook, counts in enumerate(state)}
