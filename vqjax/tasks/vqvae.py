"""Training of a vector-quantized autoencoder."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from vqjax.data import Batch, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.evaluation import Metric, Pictures, tokenizer_metrics
from vqjax.evaluation.clips import clip_metrics
from vqjax.evaluation.metrics import PSNR_CAP
from vqjax.functional.numbers import is_number
from vqjax.models import VQVAE
from vqjax.models.causal_video import inflated
from vqjax.models.tokenizer import NETWORK, Tokenizer
from vqjax.models.vqvae import takes_clips
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.codebooks import EMACodebook, GradientCodebook
from vqjax.quantizers.settings import replace_settings
from vqjax.quantizers.validation import require
from vqjax.reporting import comparison_sheet
from vqjax.reporting.pictures import clip_sheet, moving_sheet
from vqjax.tasks.state import TrainState, one_program
from vqjax.tasks.task import Metrics, Task

_LATENTS_PER_CODE = 64
_MOST_LATENTS = 2**18
_LOW_USAGE = 0.5
_SHOWN_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class VQVAETask(Task):
    """Task that trains an autoencoder with the reconstruction loss plus the quantizer's loss, using one optimizer.

    Attributes:
      model: The autoencoder; its ``microbatches`` is used in training steps only.
      optimizer: Optimizer of all its parameters.
      loss: Function ``(reconstruction, images) -> loss`` of images in [-1, 1].
      augment: Augmentation of uint8 images: a function ``(key, images) -> images``.
      kmeans_init: Whether to initialize the codebook of a new run with k-means on the untrained encoder's latents.
      ema_decay: Decay of an exponential moving average of the parameters, which is saved alongside them and used for
        evaluation; None keeps no average.
      schedules: Values of the quantizer's fields as functions of the step, by name; see
        :func:`vqjax.quantizers.replace_settings`.
      inflate: A function that returns an image tokenizer, whose values a new tokenizer of clips starts from, see
        :func:`vqjax.models.causal_video.inflated`; None for values of its own.

    Raises:
      UserError: ``ema_decay`` is out of range, or the quantizer does not support k-means initialization.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> task = VQVAETask(model, optax.adam(1e-3), loss=lambda x, y: jnp.mean((x - y) ** 2))
      >>> batch = {"image": jnp.zeros((2, 16, 16, 3), jnp.uint8)}
      >>> state = task.init(jax.random.key(0), batch)
      >>> state, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(1))
      >>> int(state.step), bool(metrics["loss"] > 0)
      (1, True)

    Source: van den Oord et al., 2017 (arXiv 1711.00937).
    """

    model: VQVAE
    optimizer: optax.GradientTransformation
    loss: Callable[[Array, Array], Float[Array, ""]]
    augment: Callable[[Key[Array, ""], Array], Array] = lambda key, images: images
    _: dataclasses.KW_ONLY
    kmeans_init: bool = False
    ema_decay: float | None = None
    schedules: Mapping[str, optax.Schedule] = dataclasses.field(default_factory=dict, hash=False)
    inflate: Callable[[], Tokenizer] | None = dataclasses.field(default=None, compare=False)

    mutable_fields: ClassVar = frozenset({"quantizer.codebook_shards"})

    def __post_init__(self) -> None:
        require(isinstance(self.kmeans_init, bool), "kmeans_init", self.kmeans_init, "True or False")
        if self.kmeans_init and not _starts_from_clusters(self.model.quantizer):
            name = type(self.model.quantizer).__name__
            raise UserError(f"kmeans_init must be False for the quantizer {name}, got True.")
        in_range = self.ema_decay is None or is_number(self.ema_decay, lambda decay: 0 < decay < 1)
        require(in_range, "ema_decay", self.ema_decay, "above 0 and below 1, or None")

    @property
    def facts(self) -> dict[str, Any]:
        """The number of codes per codebook, for the report's header."""
        return {"num_codes": self.model.quantizer.num_codes}

    @property
    def mesh_axes(self) -> dict[str, int]:
        """Axes of the device mesh besides ``data``, namely ``codes``, over which the codebook is sharded."""
        return {"codes": getattr(self.model.quantizer, "codebook_shards", 1)}

    def _optimizer(self, network: str) -> optax.GradientTransformation:
        """Optimizer of a network; here there is one network."""
        del network
        return self.optimizer

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        return self._initial_state(key, batch)

    @one_program
    def _initial_state(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        params_key, quantizer_key = jax.random.split(key)
        model, images = self.model.clone(microbatches=1), to_model_range(pixels_of(batch))
        if takes_clips(self.model) != (images.ndim == 5):
            wanted, source = ("clips", "panning_photos") if takes_clips(self.model) else ("images", "photos")
            raise UserError(
                f"config.data must have {wanted} for this model, got {'clips' if images.ndim == 5 else 'images'}; take "
                f"another config.data.source, such as {source}, or another config.model."
            )
        output, variables = model.init_with_output({"params": params_key, "quantizer": quantizer_key}, images)
        decoded = output.reconstruction
        codes = jax.eval_shape(lambda: model.apply(variables, output.quantizer.indices, method=_codes))
        if codes.shape != output.quantizer.quantized.shape:
            # Rarely, since it traces both networks once more: indices stand for another grid than that of the latents.
            decoded = jax.eval_shape(lambda: model.apply(variables, images, method="reconstruct"))
        if decoded.shape[:-1] == images.shape[:-1] and decoded.shape != images.shape:
            raise UserError(
                f"images must have the {decoded.shape[-1]} channels of reconstructions, got {images.shape[-1]}; set "
                f"config.model.image_channels={images.shape[-1]} or config.data.channels={decoded.shape[-1]}."
            )
        if decoded.shape != images.shape:
            sizes = (" x ".join(map(str, shape[1:-1])) for shape in (images.shape, decoded.shape))
            raise UserError(
                "The model must reconstruct images at their own size of {} pixels, got {}; the last scale of a "
                "multi-scale quantizer must equal the latent grid.".format(*sizes)
            )
        params = {NETWORK: variables.pop("params")}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            variables={NETWORK: variables},
            opt_state={NETWORK: self._optimizer(NETWORK).init(params[NETWORK])},
            ema_params=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
        )

    def model_at(self, step: Int[Array, ""]) -> VQVAE:
        """Return the autoencoder with the scheduled values of a step, which may be traced."""
        if not self.schedules:
            return self.model
        settings = {name: schedule(step) for name, schedule in self.schedules.items()}
        return self.model.clone(quantizer=replace_settings(self.model.quantizer, settings))

    def scheduled(self, step: Int[Array, ""]) -> Metrics:
        """Return the scheduled values of a step under their names in the config, for the log."""
        return {f"schedules.{name}": jnp.float32(schedule(step)) for name, schedule in self.schedules.items()}

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one optimizer step and one codebook update; see :meth:`Task.train_step`."""
        augment_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, pixels_of(batch)))
        model = self.model_at(state.step)

        def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, PyTree]]]:
            # Quantizes with the codebook from before this step's update; `variables` contain the updated one.
            output, variables = model.apply(
                {"params": params, **state.variables[NETWORK]},
                images,
                train=True,
                mutable=list(state.variables[NETWORK]),
                rngs={"quantizer": quantizer_key, "dropout": dropout_key},
            )
            loss = self.loss(output.reconstruction, images) + output.quantizer.loss
            metrics = {"loss": loss, **image_metrics(output.reconstruction, images), **output.quantizer.metrics}
            return loss, (metrics, variables)

        gradient, (metrics, variables) = jax.grad(loss_function, has_aux=True)(state.params[NETWORK])
        metrics |= {"gradient_norm": optax.tree.norm(gradient), **self.scheduled(state.step)}
        state = state.apply_gradient(NETWORK, gradient, self.optimizer, variables)
        return state.finish_step(self.ema_decay), metrics

    def init_from_data(self, state: TrainState, batches: Iterator[Batch], key: Key[Array, ""]) -> TrainState:
        """Start from ``inflate``, then the codebook from k-means if ``kmeans_init`` is set; see :class:`Task`."""
        if self.inflate is not None:
            state = state.with_network(NETWORK, inflated(state.trained(NETWORK), self.inflate().variables))
        if not self.kmeans_init:
            return state
        encode = jax.jit(lambda variables, images: self.model.apply(variables, images, train=False, method="latents"))
        wanted = min(_LATENTS_PER_CODE * self.model.quantizer.num_codes, _MOST_LATENTS)
        latents: list[Float[Array, "batch *grid dim"]] = []
        for batch in batches:
            latents.append(encode(state.trained(NETWORK), to_model_range(pixels_of(batch))))
            if sum(z.size // z.shape[-1] for z in latents) >= wanted:
                break
        cluster = jax.jit(
            lambda variables, z: self.model.apply(
                variables,
                z,
                method=lambda model, z: model.quantizer.kmeans_init(z),
                # Codes that are parameters start from clusters as well.
                mutable=["params", *state.variables[NETWORK]],
                rngs={"quantizer": key},
            )
        )
        _, started = cluster(state.trained(NETWORK), jnp.concatenate(latents))
        return state.with_network(NETWORK, started)

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return reconstructions, code indices and the quantizer's metrics; see :meth:`Task.evaluate`."""
        model = self.model_at(state.step).clone(microbatches=1)
        output = model.apply(state.evaluated(NETWORK), to_model_range(pixels_of(batch)), batch["valid"], train=False)
        return {
            "reconstruction": output.reconstruction,
            "indices": output.quantizer.indices,
            **output.quantizer.metrics,
        }

    @property
    def metrics(self) -> Sequence[Metric]:
        """Metrics of a tokenizer, and the first images of the split with their reconstructions."""
        sizes = self.model.quantizer.codebook_sizes
        if takes_clips(self.model):
            return *clip_metrics(sizes), Pictures(("video", "reconstruction"), limit=_SHOWN_CLIPS)
        return *tokenizer_metrics(sizes), Pictures()

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """Return quality and code usage in one line."""
        gain = f"{metrics['psnr_gain']:+.2f} over the mean color"
        if takes_clips(self.model):
            gain = f"{metrics['psnr_gain_temporal_mean']:+.2f} over the mean of frames"
        return (
            f"held-out PSNR {metrics['psnr']:.2f} dB ({gain}), "
            f"perplexity {metrics['perplexity_batch']:.1f}, codes in use {100 * metrics['usage_split']:.0f} %"
        )

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """Name the field that brings codes into use, if few are used and none are replaced; see :meth:`Task.advice`."""
        if metrics["usage_split"] >= _LOW_USAGE:
            return None
        quantizer, path = self.model.quantizer, "config.quantizer"
        while isinstance(inner := getattr(quantizer, "quantizer", None), nn.Module):
            quantizer, path = inner, f"{path}.quantizer"
        codebook = getattr(quantizer, "codebook", None)
        # What is frozen, or no codebook, has no such field.
        if not isinstance(codebook, EMACodebook | GradientCodebook) or codebook.replace is not None:
            return None
        return (
            f"only {100 * metrics['usage_split']:.0f} % of the codes are in use: --{path}.codebook.replace.below=0.1 "
            "replaces the others in training"
        )

    def pictures(
        self, collected: Mapping[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "*frames height width channels"]]:
        """Return a sheet of originals above their reconstructions; of clips a moving one, too."""
        if not takes_clips(self.model):
            return {"reconstructions": comparison_sheet(collected["image"], collected["reconstruction"])}
        clips = collected["video"], collected["reconstruction"]
        return {"reconstructions": clip_sheet(*clips), "reconstructions_moving": moving_sheet(*clips)}

    def partition(self, path: tuple[str, ...], array: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        """Shard arrays that have one row per code over the mesh axis ``codes``; see :meth:`Task.partition`."""
        of_codes = "quantizer" in path and ("codebook" in path or path[-1] == "codes")
        row_per_code = of_codes and array.shape[:1] == (self.model.quantizer.num_codes,)
        return PartitionSpec("codes") if row_per_code else PartitionSpec()


def _codes(model: VQVAE, indices: Int[Array, " batch *tokens"]) -> Float[Array, "batch *grid dim"]:
    return model.quantizer.decode(indices)


def image_metrics(reconstruction: Array, images: Array) -> Metrics:
    """Return mean squared error and PSNR of a batch of images in [-1, 1]; the latter at most ``PSNR_CAP``."""
    error = jnp.mean(jnp.square(reconstruction - images))
    # Pixel values span [-1, 1], a range of 2, so the squared peak is 4.
    smallest = 4 * 10 ** (-PSNR_CAP / 10)
    return {"reconstruction_mse": error, "psnr": 10 * jnp.log10(4 / jnp.maximum(error, smallest))}


def _starts_from_clusters(quantizer: nn.Module) -> bool:
    """Whether a quantizer, or the quantizer of its stages or groups, supports k-means initialization."""
    if getattr(type(quantizer), "kmeans_init", Quantizer.kmeans_init) is Quantizer.kmeans_init:
        return False
    template = getattr(quantizer, "quantizer", None)
    return template is None or _starts_from_clusters(template)
