"""A codebook in the plane: t-SNE in the same layout from epoch to epoch."""

import importlib
from types import ModuleType

import numpy as np
import scipy.linalg
from jaxtyping import Float

from vqjax.errors import UserError

Layout = Float[np.ndarray, "codes 2"]

_PERPLEXITY = 30.0
_LEARNING_RATE = 200.0
_ITERATIONS = 1000
_DECIMALS = 2


def tsne_module() -> ModuleType:
    """Import ``sklearn.manifold``.

    Returns:
      The module.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        return importlib.import_module("sklearn.manifold")
    except ImportError as error:
        raise UserError('t-SNE needs scikit-learn, which is not installed: pip install "vqjax[plots]"') from error


def lay_out(codes: Float[np.ndarray, "codes dim"], earlier: Layout | None) -> Layout:
    """Place codes in the plane by t-SNE.

    Args:
      codes: The codebook.
      earlier: Layout of the same codebook at an earlier epoch, if there is one: a code that has not moved stays at its
        place.

    Returns:
      Positions, rounded to two decimals.

    Raises:
      UserError: scikit-learn is not installed.
    """
    tsne = tsne_module().TSNE(
        perplexity=min(_PERPLEXITY, (len(codes) - 1) / 3),
        learning_rate=_LEARNING_RATE,
        max_iter=_ITERATIONS,
        # t-SNE starts small and unfolds; from a layout as wide as its result, nothing would move.
        init="random" if earlier is None else (earlier / np.std(earlier[:, 0]) * 1e-4).astype(np.float32),
        random_state=42,
    )
    return np.round(tsne.fit_transform(codes).astype(float), _DECIMALS)


def aligned(layout: Layout, reference: Layout) -> Layout:
    """Rotate and mirror a layout so that each code comes as close as possible to its earlier place.

    Args:
      layout: Layout of t-SNE, whose orientation is arbitrary.
      reference: The earlier layout, centered.

    Returns:
      The layout, centered.

    Example:
      >>> reference = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
      >>> bool(np.allclose(aligned(reference[:, ::-1] + 5, reference), reference))
      True
    """
    centered = layout - layout.mean(axis=0)
    turn, _ = scipy.linalg.orthogonal_procrustes(centered, reference)
    return centered @ turn
