"""Recorded inputs, weights and outputs of the original PyTorch modules."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

DIRECTORY = os.environ.get("VQJAX_GOLDENS")


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and what is said about them; the test is skipped if ``VQJAX_GOLDENS`` names no directory."""
    if DIRECTORY is None:
        pytest.skip("VQJAX_GOLDENS names no directory of recorded outputs")
    with safe_open(Path(DIRECTORY) / f"{name}.safetensors", "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return arrays, {key: json.loads(value) for key, value in file.metadata().items()}


def weights(arrays: dict[str, np.ndarray], prefix: str = "model.") -> dict[str, np.ndarray]:
    """Arrays whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def channels_last(array: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def kernel(array: np.ndarray) -> jnp.ndarray:
    """A convolution's kernel, or a linear layer's, from the order of PyTorch."""
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def patchgan_variables(arrays, num_layers):
    """Variables of PatchGAN, and the place of each convolution in the original."""
    places = [0, *(2 + 3 * i for i in range(num_layers)), 2 + 3 * num_layers]
    params, statistics = {}, {}
    for layer, place in enumerate(places):
        params[f"conv_{layer}"] = {"kernel": kernel(arrays[f"main.{place}.weight"])}
        if f"main.{place}.bias" in arrays:
            params[f"conv_{layer}"]["bias"] = jnp.asarray(arrays[f"main.{place}.bias"])
        if 0 < layer <= num_layers:
            norm = {name: jnp.asarray(arrays.get(f"main.{place + 1}.{name}")) for name in ("weight", "bias")}
            params[f"norm_{layer}"] = {"scale": norm["weight"], "bias": norm["bias"]}
            statistics[f"norm_{layer}"] = {
                "mean": jnp.asarray(arrays[f"main.{place + 1}.running_mean"]),
                "var": jnp.asarray(arrays[f"main.{place + 1}.running_var"]),
            }
    return {"params": params, "batch_stats": statistics}, places


def assert_equal(actual: Any, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Largest difference relative to the largest number."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)
