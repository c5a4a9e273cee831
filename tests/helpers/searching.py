"""Data on which searches for the nearest code go wrong, and the check in float64."""

import numpy as np

TOKENS, CODES, DIM = 500, 300, 32


def data(name):
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(TOKENS, DIM)), rng.normal(size=(CODES, DIM))
    if name == "far from the origin":
        z, codes = 20 + 0.1 * z, 20 + 0.1 * codes
    elif name == "tiny codes":
        codes = rng.uniform(-1 / CODES, 1 / CODES, size=codes.shape)
    elif name == "large":
        z, codes = 1e3 * z, 1e3 * codes
    elif name == "large and small":
        codes *= 10.0 ** rng.uniform(-3, 3, size=(CODES, 1))
    elif name == "some far away":  # as moving averages that start from nothing throw them
        codes[rng.permutation(CODES)[: CODES // 8]] *= 1e5
    elif name == "most far away":
        codes[rng.permutation(CODES)[: CODES - CODES // 8]] *= 1e5
    elif name == "unit":
        z, codes = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, codes))
    return z.astype(np.float32), codes.astype(np.float32)


DATA = (
    *("gaussian", "far from the origin", "tiny codes", "large", "large and small"),
    *("some far away", "most far away", "unit"),
)


def distances(z, codes):
    return np.sum((z.astype(np.float64)[:, None] - codes.astype(np.float64)) ** 2, axis=-1)


def wrong(z, codes, indices):
    """Tokens whose code is not the nearest, in float64."""
    squared = distances(z, codes)
    return int(np.sum(squared[np.arange(len(z)), indices] > squared.min(1)))


def equal_codes():
    codes = np.zeros((CODES, DIM), np.float32)
    codes[:3] = 1  # the best of the first chunk is worse than the ties that follow
    return codes
