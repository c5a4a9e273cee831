"""Batch normalization of frozen networks, as part of their convolutions."""

import numpy as np

from vqjax.importing.state_dict import StateDict

_EPSILON = 1e-3


def without_norms(arrays: StateDict, conv: str) -> StateDict:
    """Multiply each convolution by the scale of the norm behind it, and add its shift as a bias.

    Args:
      arrays: Arrays by name; the norm of ``UNIT.conv.weight`` has the names ``UNIT.bn.weight`` and so on.
      conv: What the convolution of a unit is called.

    Returns:
      The arrays with biases in the place of norms. What does not fit together is left as it is.

    Example:
      >>> norm = {"weight": 2.0, "bias": 1.0, "running_mean": 0.0, "running_var": 1 - 1e-3}
      >>> arrays = {f"unit.bn.{name}": np.full(1, value) for name, value in norm.items()}
      >>> joined = without_norms(arrays | {"unit.conv.weight": np.full((1, 1, 1, 1), 3.0)}, "conv")
      >>> {name: array.item() for name, array in joined.items()}
      {'unit.conv.weight': 6.0, 'unit.conv.bias': 1.0}
    """
    joined = dict(arrays)
    for key, kernel in arrays.items():
        unit = key.removesuffix(f".{conv}.weight")
        norm = [f"{unit}.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        if unit != key and all(name in arrays and arrays[name].shape == kernel.shape[:1] for name in norm):
            scale, shift, mean, variance = (joined.pop(name).astype(np.float64) for name in norm)
            factor = scale / np.sqrt(variance + _EPSILON)
            joined[key] = (kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.float32)
            joined[f"{unit}.{conv}.bias"] = (shift - mean * factor).astype(np.float32)
    return joined
