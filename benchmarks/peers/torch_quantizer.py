"""vector-quantize-pytorch: forward, backward and update of the moving averages."""

from collections.abc import Callable

import numpy as np
import torch
from vector_quantize_pytorch import VectorQuantize


def torch_quantizer(z: np.ndarray, slope: np.ndarray, num_codes: int, compiled: bool) -> Callable[[], None]:
    """One training step of its quantizer with the rotation trick, on a GPU where there is one.

    Args:
      z: Tokens ``[tokens, dim]``, float32.
      slope: Gradient of the task with respect to the codes.
      num_codes: Size of the codebook.
      compiled: With ``torch.compile``.

    Returns:
      A function that returns when the step is done.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quantizer = VectorQuantize(
        dim=z.shape[-1], codebook_size=num_codes, decay=0.99, commitment_weight=0.25, rotation_trick=True
    ).to(device)
    quantizer.train()
    forward = torch.compile(quantizer) if compiled else quantizer
    tokens = torch.tensor(z, device=device)[None].requires_grad_()
    weights = torch.tensor(slope, device=device)[None]

    def step() -> None:
        tokens.grad = None
        quantized, _, loss = forward(tokens)
        ((quantized * weights).sum() + loss.sum()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
