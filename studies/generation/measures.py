"""Measures of tokens and samples: likelihood, Fréchet distance, recognized classes, nearest training images."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vqjax.evaluation import Moments, frechet_distance
from vqjax.evaluation.features import FeatureNetwork

Images = UInt8[np.ndarray, "images height width channels"]
Tokens = Int[np.ndarray, "images positions"]

_BATCH = 250
_PRIORS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def unigram_bits(train: Tokens, held_out: Tokens, num_codes: int) -> float:
    """Return the bits per token of held-out images by the frequencies of the codes in training images.

    Args:
      train: Tokens of the training images.
      held_out: Tokens of the held-out images.
      num_codes: Number of codes.

    Example:
      >>> halves = np.array([[0, 1], [1, 0]])
      >>> round(unigram_bits(halves, halves, num_codes=2), 6)
      1.0
    """
    return float(-np.mean(np.log2(_frequencies(train, num_codes)[held_out])))


def bigram_bits(train: Tokens, held_out: Tokens, num_codes: int) -> float:
    """Return the bits per token of held-out images by pairs of neighbors in reading order.

    Counts of pairs join a multiple of the frequencies of the codes; the multiple is the best one for these images, so
    that the number is a lower bound of what such a model reaches.

    Args:
      train: Tokens of the training images, row by row.
      held_out: Tokens of the held-out images.
      num_codes: Number of codes.

    Example:
      >>> stripes = np.tile([0, 1], (1000, 8))
      >>> bigram_bits(stripes, stripes, num_codes=2) < 0.1
      True
    """
    frequencies = _frequencies(train, num_codes)
    counts = np.zeros((num_codes, num_codes))
    np.add.at(counts, (train[:, :-1], train[:, 1:]), 1)
    of_pairs, of_first = counts[held_out[:, :-1], held_out[:, 1:]], counts.sum(axis=1)[held_out[:, :-1]]
    alone = np.log2(frequencies[held_out])
    totals = [
        np.sum(np.log2((of_pairs + prior * frequencies[held_out[:, 1:]]) / (of_first + prior))) for prior in _PRIORS
    ]
    return float(-(np.sum(alone[:, 0]) + max(totals)) / held_out.size)


def unigram_samples(train: Tokens, count: int, num_codes: int, seed: int = 0) -> Tokens:
    """Draw the tokens of images one by one, by the frequencies of the codes.

    Args:
      train: Tokens of the training images.
      count: Number of images.
      num_codes: Number of codes.
      seed: Seed.
    """
    chance = np.random.default_rng(seed)
    return chance.choice(num_codes, (count, train.shape[1]), p=_frequencies(train, num_codes))


def _frequencies(tokens: Tokens, num_codes: int) -> Float[np.ndarray, " codes"]:
    """With half an occurrence added, so that no code has none."""
    counts = np.bincount(tokens.reshape(-1), minlength=num_codes) + 0.5
    return counts / counts.sum()


class Gallery:
    """Features of sets of images by a frozen classifier.

    Args:
      classifier: The network, with logits.
    """

    def __init__(self, classifier: FeatureNetwork) -> None:
        self._features = jax.jit(lambda images: classifier(images))

    def measure(self, images: Images) -> tuple[Float[np.ndarray, "images dim"], Float[np.ndarray, "images classes"]]:
        """Return vectors and logits of images."""
        parts = [jax.device_get(self._features(jnp.asarray(batch))) for batch in _batches(images)]
        pool, logits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("pool", "logits"))
        return pool[: len(images)], logits[: len(images)]


def _batches(images: Images) -> Iterator[Images]:
    """Batches of one size, the last filled up with the first images."""
    for start in range(0, len(images), _BATCH):
        yield images[np.arange(start, start + _BATCH) % len(images)]


def distance(one: Float[np.ndarray, "_ dim"], other: Float[np.ndarray, "_ dim"]) -> float:
    """Return the squared Fréchet distance of two sets of vectors.

    Args:
      one: Vectors.
      other: Vectors.

    Example:
      >>> round(distance(np.eye(4)[:, :2], 1 + np.eye(4)[:, :2]), 6)
      2.0
    """
    return frechet_distance(*(Moments.none().including(vectors.astype(np.float64)) for vectors in (one, other)))


def nearest(
    queries: Float[np.ndarray, "queries dim"], among: Float[np.ndarray, "images dim"]
) -> tuple[Int[np.ndarray, " queries"], Float[np.ndarray, " queries"]]:
    """Return for each vector the nearest of others, and its distance.

    Args:
      queries: Vectors.
      among: Vectors to look among.

    Example:
      >>> index, length = nearest(np.array([[0.0, 3.0]]), np.array([[9.0, 9.0], [0.0, 1.0]]))
      >>> index.tolist(), length.tolist()
      ([1], [2.0])
    """
    squares = np.sum(queries**2, axis=1)[:, None] + np.sum(among**2, axis=1) - 2 * queries @ among.T
    index = np.argmin(squares, axis=1)
    return index, np.linalg.norm(queries - among[index], axis=1)
