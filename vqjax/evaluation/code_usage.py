"""What the counts of a codebook's codes say about its use."""

import numpy as np
from jaxtyping import Int


def perplexity(counts: Int[np.ndarray, " num_codes"]) -> float:
    """The number of equally used codes that would have the same entropy: exp(-sum p log p).

    Args:
      counts: How often each code was used; at least one is above zero.

    Returns:
      A number between 1 and the number of codes, in double precision.

    Example:
      >>> perplexity(np.array([5, 5, 0, 0]))
      2.0
    """
    used = counts[counts > 0]
    shares = used / used.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
