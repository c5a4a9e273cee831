"""State dicts of published feature networks, with random numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.models import AlexNet


def alexnet(name="features.{}.{}"):
    """Convolutions of torchvision's ``alexnet``; ``name`` is filled with the number of a layer and what it is of it."""
    like = jax.eval_shape(AlexNet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    rng = np.random.default_rng(0)
    arrays = {}
    for key, layer in like.items():
        number, kernel = key.removeprefix("conv_"), layer["kernel"].shape
        arrays[name.format(number, "weight")] = rng.normal(size=[kernel[axis] for axis in (3, 2, 0, 1)])
        arrays[name.format(number, "bias")] = rng.normal(size=kernel[-1:])
    return arrays
