"""The device of PyTorch's contenders, with the accuracy and the choices that ours have there."""

import torch


def torch_device() -> str:
    """Return ``"cuda"`` where there is a GPU: products of float32 go through TF32, as in JAX, and cuDNN is measured."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"
