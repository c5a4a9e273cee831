"""State dicts and files of feature networks, with random numbers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from vqjax.models import AlexNet
from vqjax.models.i3d import I3D
from vqjax.models.resnet import ResNet


def save_resnet(path, channels=(8, 16)):
    """Write a small network, which takes images at their own size, as studies/features does, and return the path."""
    variables = ResNet(channels).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    save_file(flax.traverse_util.flatten_dict(jax.device_get(variables), sep="."), path)
    return path


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


def dinov2(*, dim=64, depth=1, registers=0, side=16):
    """The entries of DINOv2 as its publishers have them, for ``side * side`` patches."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, side**2 + 1, dim),
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    for i in range(depth):
        for name, rows in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 4), ("mlp.fc2", 1)):
            columns = 4 * dim if name == "mlp.fc2" else dim
            shapes |= {f"blocks.{i}.{name}.weight": (rows * dim, columns), f"blocks.{i}.{name}.bias": (rows * dim,)}
        vectors = ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma")
        shapes |= {f"blocks.{i}.{name}": (dim,) for name in vectors}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}


def i3d():
    """The entries of pytorch-i3d's ``InceptionI3d``, with numbers that keep the size of features, and norms."""
    clips = jnp.zeros((1, 9, 224, 224, 3))
    like = flax.traverse_util.flatten_dict(jax.eval_shape(I3D().init, jax.random.key(0), clips)["params"])
    rng, arrays = np.random.default_rng(0), {}
    for path, leaf in like.items():
        unit = ".".join(path[:-1]).removesuffix(".conv3d")
        if path[-1] == "kernel":
            shape = [leaf.shape[axis] for axis in (4, 3, 0, 1, 2)]
            kernel = rng.standard_normal(shape, np.float32)
            arrays[f"{unit}.conv3d.weight"] = kernel * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif unit == "logits":
            arrays["logits.conv3d.bias"] = rng.standard_normal(leaf.shape, np.float32)
        else:
            means = {name: 0.1 * rng.standard_normal(leaf.shape, np.float32) for name in ("bias", "running_mean")}
            scales = {name: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for name in ("weight", "running_var")}
            arrays |= {f"{unit}.bn.{name}": array for name, array in (means | scales).items()}
    return arrays
