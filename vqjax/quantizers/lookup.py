"""From vectors to codes: selection and gradient, for one codebook."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.estimators import Estimator, chooses_codes, keyword_names, straight_through
from vqjax.functional.search import nearest_codes, sample_codes

Vectors = Float[Array, "*batch dim"]


class Lookup(NamedTuple):
    """The result of a lookup.

    Attributes:
      quantized: What the quantizer returns: the codes, with the estimator's gradient.
      indices: int32, one per vector.
      codes: The codes of the indices, with a plain gradient.
    """

    quantized: Vectors
    indices: Int[Array, "*batch"]
    codes: Vectors


def look_up(
    vectors: Vectors,
    codes: Float[Array, "codes dim"],
    mask: Bool[Array, "*batch"] | None,
    key: Key[Array, ""] | None,
    given: Int[Array, "*batch"] | None = None,
    chosen: Vectors | None = None,
    *,
    estimator: Estimator,
    temperature: float,
    metric: str,
    axis_name: str | None,
    search: Callable[[Vectors, Float[Array, "codes dim"]], Int[Array, "*batch"]] = nearest_codes,
) -> Lookup:
    """Chooses a code for each vector and lets the gradient cross.

    Args:
      vectors: float32 tokens.
      codes: The codebook.
      mask: True for the tokens that count.
      key: Random key; without one nothing is drawn: the nearest codes, and straight-through in place of estimators
        that draw noise.
      given: Indices that were chosen elsewhere; None looks them up.
      chosen: Their codes, where those are not rows of ``codes``.
      estimator: See :mod:`vqjax.estimators`.
      temperature: Of the sampling of indices; 0 takes the nearest.
      metric: ``"euclidean"`` or ``"cosine"``; of the sampling.
      axis_name: Mapped axis over which the batch is split.
      search: Finds the nearest codes, see :func:`vqjax.functional.search.nearest_codes`.

    Returns:
      Quantized vectors, indices and codes.
    """
    if key is None and "key" in keyword_names(estimator):
        estimator = straight_through
    if key is not None and axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    if chooses_codes(estimator):
        quantized, indices = estimator(vectors, codes, **_given(estimator, {"key": key, "mask": mask}))
        return Lookup(quantized, indices, codes[indices])
    if given is not None:
        indices = given
    elif key is not None and temperature > 0:
        # A key of its own: an estimator's noise must not depend on the noise that chose the index.
        sampling_key = jax.random.fold_in(key, 1)
        indices = sample_codes(sampling_key, vectors, codes, temperature=temperature, distance=metric)
    else:
        indices = search(vectors, codes)
    chosen = codes[indices] if chosen is None else chosen
    offered = {"indices": indices, "num_codes": codes.shape[-2], "mask": mask, "axis_name": axis_name, "key": key}
    return Lookup(estimator(vectors, chosen, **_given(estimator, offered)), indices, chosen)


def _given(estimator: Estimator, offered: dict) -> dict:
    wanted = keyword_names(estimator)
    return {name: value for name, value in offered.items() if name in wanted}
