"""Uses the installed package with nothing but its own dependencies."""

import importlib.util

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import vqjax
import vqjax.importing
import vqjax.nnx
from vqjax.models.registry import build_model

assert "site-packages" in vqjax.__file__
for absent in ("grain", "ml_collections", "tensorflow_datasets", "skimage", "tensorboardX", "torch"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed"

z = jax.random.normal(jax.random.key(0), (8, 16, 4))
vq = vqjax.VectorQuantizer(num_codes=32)
variables = vq.init({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, z)
out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
indices = vq.apply(variables, z, method="encode")
np.testing.assert_array_equal(vq.apply(variables, indices, method="decode"), out.quantized)

quantizer = vqjax.nnx.Quantizer(vqjax.FSQ(levels=(8, 5, 5)), dim=4, rngs=nnx.Rngs(0))
assert quantizer(z, train=True).quantized.shape == z.shape

codes = np.asarray(updates["codebook"]["codes"])
save_file(
    {
        "_codebook.initted": np.ones(1, np.float32),
        "_codebook.cluster_size": np.ones((1, 32), np.float32),
        "_codebook.embed": codes[None],
        "_codebook.embed_avg": codes[None],
    },
    "quantizer.safetensors",
)
arguments = {"dim": 4, "codebook_size": 32}
_, imported = vqjax.importing.vector_quantize_pytorch("quantizer.safetensors", arguments)
np.testing.assert_array_equal(imported["codebook"]["codes"], codes)
model = build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, {"name": "vq", "num_codes": 8})
variables = jax.jit(model.init)({"params": jax.random.key(3)}, np.ones((1, 8, 8, 3)))
vqjax.Tokenizer(model, variables, config={}, step=0).save_pretrained("shared")
images = np.zeros((2, 8, 8, 3), np.uint8)
assert vqjax.Tokenizer.from_pretrained("shared").encode(images).shape == (2, 2, 2)

print("the package works with its own dependencies")
