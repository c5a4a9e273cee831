"""What type checkers tell users of the package: never run, but read by one outside of the clone.

Each ``assert_type`` says what they infer, and each ``pyright: ignore`` what they refuse: the check fails where there is
nothing to ignore.
"""

# pyright: standard, reportUnnecessaryTypeIgnoreComment=error

from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import vqjax
import vqjax.importing
import vqjax.nnx
from vqjax import (
    BSQ,
    FSQ,
    LFQ,
    EMACodebook,
    FrozenCodebook,
    GradientCodebook,
    Grouped,
    LinearTransform,
    MultiScaleVQ,
    ProductVQ,
    QuantizerOutput,
    Replacement,
    Residual,
    ResidualVQ,
    SimVQ,
    Tokenizer,
    UserError,
    VectorQuantizer,
    estimators,
    functional,
)
from vqjax.data.arrays import ArrayDataset
from vqjax.data.dataset import ImageDataset, Splits
from vqjax.evaluation import EvaluationResult, Metric, load_tokens
from vqjax.functional import Codebook
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder, VQVAEOutput
from vqjax.quantizers import QUANTIZERS, Quantizer
from vqjax.tasks.task import Task
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training.config import base_config
from vqjax.training.loop import train


def constructors() -> None:
    assert_type(VectorQuantizer(512), VectorQuantizer)
    VectorQuantizer(512, distance="cosine", codebook=EMACodebook(decay=0.95, replace=Replacement(below=0.01)))
    VectorQuantizer(512, codebook=GradientCodebook(weight=1.0), codebook_dim=8, estimator="straight_through")
    VectorQuantizer(512, codebook=FrozenCodebook(transform=LinearTransform()), train=True, name="vq")
    VectorQuantizer(512, estimator=estimators.rotation, regularizers=(functional.Diversity(0.1),))
    VectorQuantizer(512, commitment_weight=jnp.ones(()), sampling_temperature=None)
    assert_type(Residual(VectorQuantizer(256), num_quantizers=4), Residual)
    assert_type(ResidualVQ(VectorQuantizer(256), 4), Residual)
    assert_type(Grouped(Residual(FSQ(levels=(8, 5, 5)), num_quantizers=2), groups=2), Grouped)
    assert_type(FSQ((8, 5, 5)), FSQ)
    assert_type(FSQ([8, 5, 5]), FSQ)
    assert_type(MultiScaleVQ(VectorQuantizer(256), scales=(1, 2, 4)), MultiScaleVQ)
    quantizers: list[Quantizer] = [LFQ(8), BSQ(8), SimVQ(16), ProductVQ(16, heads=2)]
    assert_type(quantizers[0].index_shape, tuple[int, ...])


def mistakes(vq: VectorQuantizer, z: Array, out: QuantizerOutput) -> None:
    VectorQuantizer()  # pyright: ignore[reportCallIssue]
    VectorQuantizer(num_codes="a")  # pyright: ignore[reportArgumentType]
    VectorQuantizer(512, "cosine")  # pyright: ignore[reportCallIssue]
    VectorQuantizer(512, distance="cosin")  # pyright: ignore[reportArgumentType]
    VectorQuantizer(512, comitment_weight=1.0)  # pyright: ignore[reportCallIssue]
    VectorQuantizer(512, codebook=EMACodebook)  # pyright: ignore[reportArgumentType]
    VectorQuantizer(512, codebook=EMACodebook(decays=0.9))  # pyright: ignore[reportCallIssue]
    Residual(FSQ, 4)  # pyright: ignore[reportArgumentType]
    Residual(VectorQuantizer(256))  # pyright: ignore[reportCallIssue]
    FSQ(levels=8)  # pyright: ignore[reportArgumentType]
    vq(z, training=True)  # pyright: ignore[reportCallIssue]
    vq(z, train="yes")  # pyright: ignore[reportArgumentType]
    print(out.quantised)  # pyright: ignore[reportAttributeAccessIssue]
    estimators.rotation(z)  # pyright: ignore[reportCallIssue]
    functional.nearest_codes(z)  # pyright: ignore[reportCallIssue]
    functional.nearest_codes(z, z, shard=2)  # pyright: ignore[reportCallIssue]
    print(vqjax.VectorQuantiser)  # pyright: ignore[reportAttributeAccessIssue]
    vqjax.load_tokenizer("run", stepp=1)  # pyright: ignore[reportCallIssue]
    Tokenizer.from_pretrained("a", "main")  # pyright: ignore[reportCallIssue]
    vqjax.nnx.Quantizer(vq, dim=32)  # pyright: ignore[reportCallIssue]
    train(base_config())  # pyright: ignore[reportCallIssue]


def linen(vq: VectorQuantizer, z: Array, mask: Array) -> None:
    variables = vq.init({"params": jax.random.key(1), "quantizer": jax.random.key(2)}, z)
    out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
    variables = variables | updates
    assert_type(out, QuantizerOutput)
    assert_type(out.quantized, Array)
    assert_type(out.indices, Array)
    assert_type(out.loss, Array)
    assert_type(out.metrics, dict[str, Array])
    assert_type(vq.apply(variables, z, train=False), QuantizerOutput)
    assert_type(vq.apply(variables, z, mask, train=False, rngs={"quantizer": jax.random.key(0)}), QuantizerOutput)
    assert_type(vq.apply(variables, z, mutable=True), tuple[QuantizerOutput, dict[str, Any]])
    assert_type(vq.apply(variables, z, method="encode"), Array)
    assert_type(vq.apply(variables, out.indices, method="decode"), Array)
    assert_type(vq(z, mask, train=True), QuantizerOutput)
    assert_type(vq.encode(z), Array)
    assert_type(vq.decode(out.indices), Array)
    assert_type(vq.decode(np.zeros(3, np.uint8)), Array)
    assert_type(vq.index_shape, tuple[int, ...])
    plain, _ = vq.without_transform(variables)
    assert_type(plain, VectorQuantizer)
    residual = Residual(vq, 4)
    assert_type(residual.apply(residual.init(jax.random.key(0), z), z, train=False), QuantizerOutput)
    assert_type(residual(z), QuantizerOutput)
    assert_type(residual.encode(z, num_quantizers=2), Array)
    assert_type(Grouped(vq, 2)(z), QuantizerOutput)
    assert_type(FSQ((8, 5, 5))(z), QuantizerOutput)
    assert_type(LFQ(8)(z), QuantizerOutput)


class Autoencoder(nn.Module):
    """The README's."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, QuantizerOutput]:
        out = VectorQuantizer(num_codes=256)(nn.Dense(32)(x), train=train)
        assert_type(out, QuantizerOutput)
        return nn.Dense(x.shape[-1])(out.quantized), out


class Ternary(Quantizer):
    """A quantizer of a user."""

    differs_in_training = False

    features: int
    axis_name: str | None = None

    @property
    def num_codes(self) -> int:
        return 3**self.features

    def __call__(
        self, z: Array, mask: Array | None = None, train: bool | None = None, condition: Array | None = None
    ) -> QuantizerOutput:
        return QuantizerOutput(z, self.encode(z, mask), jnp.zeros(()), {})

    def encode(self, z: Array, mask: Array | None = None) -> Array:
        return jnp.round(z).astype(jnp.int32)[..., 0]

    def decode(self, indices: Array | np.ndarray) -> Array:
        return jnp.asarray(indices, jnp.float32)[..., None]


def nnx_models(z: Array) -> None:
    quantizer = vqjax.nnx.Quantizer(Ternary(features=2), dim=32, rngs=nnx.Rngs(0))
    assert_type(quantizer(z, train=True), QuantizerOutput)
    assert_type(quantizer.encode(z), Array)
    assert_type(quantizer.decode(quantizer.encode(z)), Array)
    assert_type(quantizer.deterministic, bool | None)


def functions(z: Array) -> None:
    assert_type(estimators.rotation(z, z), Array)
    assert_type(estimators.tangential_rotation(z, z), Array)
    assert_type(estimators.straight_through(z, z), Array)
    indices = functional.nearest_codes(z, z)
    assert_type(indices, Array)
    codebook = functional.init_codebook(z)
    assert_type(codebook, Codebook)
    assert_type(codebook.codes, Array)
    batch = functional.assign(z, indices, num_codes=16)
    assert_type(functional.ema_update(codebook, batch, decay=0.99), Codebook)
    assert_type(functional.perplexity(z), Array)


def tokenizers(images: np.ndarray) -> None:
    tokenizer = vqjax.load_tokenizer("runs/quickstart", best=True)
    assert_type(tokenizer, Tokenizer)
    indices = tokenizer.encode(images)
    assert_type(indices, Array)
    assert_type(tokenizer.decode(indices), Array)
    assert_type(tokenizer.decode(load_tokens("tokens.npz").indices), Array)
    assert_type(Tokenizer.from_pretrained("tokenizer"), Tokenizer)
    assert_type(tokenizer.export("decode", (8, 8)), bytes)
    assert_type(vqjax.__version__, str)
    arguments = dict(dim=256, codebook_size=512)
    quantizer, variables = vqjax.importing.vector_quantize_pytorch("vq.safetensors", arguments, "VectorQuantize")
    assert_type(quantizer, Quantizer)
    assert_type(variables, dict[str, Any])
    model, _ = vqjax.importing.taming("vqgan.ckpt")
    assert_type(model, VQVAE)


def training() -> None:
    config = base_config()
    config.num_steps = 10
    result = train(config, "runs/quickstart")
    assert_type(result, EvaluationResult)
    assert_type(result.metrics, dict[str, float | int | None])


class Stripes:
    """A source of a user."""

    name = "stripes"
    class_names = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
        return {"image": np.full((8, 8, 3), index, np.uint8)}


def data(images: np.ndarray) -> Splits:
    stripes: ImageDataset = Stripes()
    return Splits(ArrayDataset("images", images, image_size=32, class_names=("all",)), stripes)


def tasks(task: VQVAETask, metric: Metric) -> None:
    recipe: Task = task
    recipe.headline({"psnr": 20.0})
    assert_type(metric.protocol, dict[str, str])


def models(images: Array) -> None:
    model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
    assert_type(model(images, train=True), VQVAEOutput)
    assert_type(model(images, train=True).quantizer, QuantizerOutput)
    QUANTIZERS["ternary"] = Ternary
    raise UserError("a message")
