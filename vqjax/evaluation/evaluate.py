"""One pass over a split: how well it is reconstructed, and how well the codebook is used."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, UInt8

from vqjax.data import Batch, ImageDataset, evaluation_batches
from vqjax.errors import UserError
from vqjax.evaluation.metrics import SSIM_WINDOW, mean_squared_error, psnr, ssim
from vqjax.functional.metrics import exact_perplexity
from vqjax.quantizers.registry import FAMILIES

PSNR_CAP = 100.0
PICTURED_IMAGES = 16


class Reconstruction(NamedTuple):
    """What a tokenizer makes of a batch; the scalars are means over the tokens of valid images only.

    `images` are in [-1, 1] (values outside are clipped here), `indices` in [0, num_codes),
    `quantization_error` is the mean squared difference between latents and codes, per dimension; a scalar that the
    quantizer does not have is None.
    """

    images: Float[Array, "batch height width channels"]
    indices: Int32[Array, " batch *tokens"]
    quantization_error: Float[Array, ""] | None
    codebook_loss: Float[Array, ""] | None
    commitment_loss: Float[Array, ""] | None


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers by name (`vqjax.evaluation.report.PROTOCOL` explains each), first pictures, and indices if asked."""

    metrics: dict[str, float | int | None]
    originals: UInt8[np.ndarray, "pictured height width channels"]
    reconstructions: UInt8[np.ndarray, "pictured height width channels"]
    indices: Int32[np.ndarray, " images *tokens"] | None


class _Measured(NamedTuple):
    image_sums: dict[str, Float[Array, ""]]
    token_means: dict[str, Float[Array, ""]]
    code_counts: Int32[Array, "codebooks num_codes"]
    reconstructions: UInt8[Array, "batch height width channels"]
    indices: Int32[Array, " batch *tokens"]


def evaluate(
    reconstruct: Callable[[Float[Array, "..."], Bool[Array, "..."]], Reconstruction],
    dataset_batches: Iterable[Batch],
    *,
    num_codes: int,
    num_codebooks: int = 1,
    collect_indices: bool = False,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
) -> EvaluationResult:
    """Reconstructs every image of a split once and measures the result.

    Padded images count nowhere. Reconstructions are clipped to the pixel range before they are measured, and not
    rounded to 8 bits.

    Args:
      reconstruct: Maps images in [-1, 1], `[batch, height, width, channels]`, and the mask of valid images,
        `[batch]`, to a `Reconstruction`; it is compiled here. Give `jax.tree_util.Partial(function, variables)`
        to have repeated evaluations share one compilation.
      dataset_batches: Batches with `image`, uint8 `[batch, height, width, channels]`, and `valid`, bool `[batch]`,
        all of one shape: the last batch is padded.
      num_codes: Number of codes of a codebook.
      num_codebooks: Codebooks that the tokens of one place belong to, in the order of the last axes of the indices;
        the use of codes is measured in each and averaged.
      collect_indices: Keep the indices of the whole split, in its order.
      progress: Called after every batch with the number of images done.
      mesh: Devices that share each batch along the axis "data"; every process has to give the same batches.

    Returns:
      The numbers, the first 16 images with their reconstructions, and the indices if asked.

    Raises:
      UserError: The split is empty, or an index is outside [0, num_codes).

    Example:
      >>> def one_gray_token(images, mask):
      ...     return Reconstruction(0 * images, jnp.zeros([2, 1, 1], jnp.int32), *jnp.zeros([3]))
      >>> batch = {"image": np.full([2, 4, 4, 3], 255, np.uint8), "valid": np.array([True, False])}
      >>> metrics = evaluate(one_gray_token, [batch], num_codes=2).metrics
      >>> metrics["images"], metrics["mse_01"], metrics["usage_split"]
      (1, 0.25, 0.5)
    """
    if not isinstance(reconstruct, jax.tree_util.Partial):
        reconstruct = jax.tree_util.Partial(reconstruct)
    totals = _Totals(num_codes, collect_indices)
    for batch in dataset_batches:
        images, valid = batch["image"], batch["valid"]
        shared = (images, valid) if mesh is None else _shared_by_rows((images, valid), mesh)
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        totals.add(images, valid, _measure(reconstruct, *shared, num_codes, num_codebooks, whole))
        if progress is not None:
            progress(totals.images)
    return totals.result()


def _shared_by_rows(arrays: tuple[np.ndarray, ...], mesh: Mesh) -> tuple[Array, ...]:
    """The rows of arrays divided over the devices; where they do not divide equally, zeros are added."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def shared(array: np.ndarray) -> Array:
        missing = -len(array) % mesh.shape["data"]
        padded = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])

    return tuple(map(shared, arrays))


@jax.jit(static_argnames=("num_codes", "num_codebooks", "whole"))
def _measure(
    reconstruct: Callable[..., Reconstruction],
    images: UInt8[Array, "batch height width channels"],
    valid: Bool[Array, " batch"],
    num_codes: int,
    num_codebooks: int,
    whole: NamedSharding | None,
) -> _Measured:
    pixels = images.astype(jnp.float32) / 255
    output = reconstruct(2 * pixels - 1, valid)
    reconstructed = jnp.clip((output.images.astype(jnp.float32) + 1) / 2, 0, 1)
    mean_color = jnp.broadcast_to(jnp.mean(pixels, axis=(1, 2), keepdims=True), pixels.shape)
    per_image = {
        "mse_01": mean_squared_error(pixels, reconstructed),
        "psnr": jnp.minimum(psnr(pixels, reconstructed), PSNR_CAP),
        "psnr_mean_color": jnp.minimum(psnr(pixels, mean_color), PSNR_CAP),
        # Around 0.5, so that the square of the mean does not drown the variance in float32.
        "pixel": jnp.mean(pixels - 0.5, axis=(1, 2, 3)),
        "pixel_squared": jnp.mean(jnp.square(pixels - 0.5), axis=(1, 2, 3)),
    }
    if min(images.shape[1:3]) >= SSIM_WINDOW:
        per_image["ssim"] = ssim(pixels, reconstructed)
    used = jnp.broadcast_to(jnp.expand_dims(valid, range(1, output.indices.ndim)), output.indices.shape)
    # Indices that do not exist go to a place of their own instead of wrapping around.
    places = jnp.where(used & (output.indices >= 0), output.indices, num_codes).reshape(-1, num_codebooks)
    codebooks = jnp.broadcast_to(jnp.arange(num_codebooks)[None], places.shape)
    measured = _Measured(
        # A padded image may give NaN, which a product with zero would let through.
        image_sums={name: jnp.sum(jnp.where(valid, values, 0)) for name, values in per_image.items()},
        token_means={name: value for name in _TOKEN_MEANS if (value := getattr(output, name)) is not None},
        code_counts=jnp.zeros((num_codebooks, num_codes), jnp.int32).at[codebooks, places].add(1, mode="drop"),
        reconstructions=jnp.round(reconstructed * 255).astype(jnp.uint8),
        indices=output.indices,
    )
    # Every process needs all of it.
    return measured if whole is None else jax.lax.with_sharding_constraint(measured, whole)


_TOKEN_MEANS = ("quantization_error", "codebook_loss", "commitment_loss")


class _Totals:
    """Sums over the batches so far, in double precision and whole numbers."""

    def __init__(self, num_codes: int, collect_indices: bool) -> None:
        self.images = 0
        self._num_codes = num_codes
        self._collect_indices = collect_indices
        self._batch_size = self._tokens_per_image = 0
        self._sums: dict[str, float] = {}
        self._code_counts: np.ndarray | int = 0
        self._full_perplexities: list[float] = []
        self._partial_perplexities: list[float] = []
        self._originals: list[np.ndarray] = []
        self._reconstructions: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []

    def add(self, images: Any, valid: Any, measured: _Measured) -> None:
        valid = np.asarray(valid)
        count = int(valid.sum())
        if count == 0:
            return
        weighted = {name: float(mean) * count for name, mean in measured.token_means.items()}
        for name, value in (measured.image_sums | weighted).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._batch_size = len(valid)
        self._tokens_per_image = math.prod(measured.indices.shape[1:])
        self._add_codes(np.asarray(measured.code_counts).astype(np.int64), count, is_full=bool(valid.all()))
        missing = PICTURED_IMAGES - self.images
        if missing > 0:
            self._originals.append(np.asarray(images)[valid][:missing])
            self._reconstructions.append(np.asarray(measured.reconstructions)[: len(valid)][valid][:missing])
        if self._collect_indices:
            self._indices.append(np.asarray(measured.indices)[: len(valid)][valid])
        self.images += count

    def _add_codes(self, counts: np.ndarray, images: int, *, is_full: bool) -> None:
        if counts.sum() != images * self._tokens_per_image:
            raise UserError(
                f"num_codes={self._num_codes} does not fit the indices that reconstruct returned, some of which "
                f"are outside 0 to {self._num_codes - 1}; pass the num_codes of the quantizer."
            )
        self._code_counts = self._code_counts + counts
        (self._full_perplexities if is_full else self._partial_perplexities).append(_mean_perplexity(counts))

    def result(self) -> EvaluationResult:
        if self.images == 0:
            raise UserError("dataset_batches holds no valid image; choose a split that is not empty.")
        return EvaluationResult(
            metrics=self._image_metrics() | self._code_metrics(),
            originals=np.concatenate(self._originals),
            reconstructions=np.concatenate(self._reconstructions),
            indices=np.concatenate(self._indices) if self._collect_indices else None,
        )

    def _image_metrics(self) -> dict[str, float | int | None]:
        means = {name: total / self.images for name, total in self._sums.items()}
        variance = means["pixel_squared"] - means["pixel"] ** 2
        return {
            "images": self.images,
            "batch_size": self._batch_size,
            "mse_01": means["mse_01"],
            "mse_pm1": 4 * means["mse_01"],
            "variance_01": variance,
            "mse_over_variance": means["mse_01"] / variance if variance > 0 else None,
            "psnr": means["psnr"],
            "psnr_mean_color": means["psnr_mean_color"],
            "psnr_gain": means["psnr"] - means["psnr_mean_color"],
            "ssim": means.get("ssim"),
        } | {name: means[name] for name in _TOKEN_MEANS if name in means}

    def _code_metrics(self) -> dict[str, float | int | None]:
        used_codes = int(np.count_nonzero(self._code_counts))
        entropy_bits = float(np.mean([math.log2(exact_perplexity(counts)) for counts in self._code_counts]))
        return {
            "perplexity_batch": float(np.mean(self._full_perplexities or self._partial_perplexities)),
            "perplexity_split": _mean_perplexity(self._code_counts),
            "usage_split": used_codes / self._code_counts.size,
            "dead_codes_split": self._code_counts.size - used_codes,
            "tokens_per_image": self._tokens_per_image,
            "bits_per_image": self._tokens_per_image * math.log2(self._num_codes),
            "entropy_bits_per_image": self._tokens_per_image * entropy_bits,
        }


def _mean_perplexity(counts: np.ndarray) -> float:
    return float(np.mean([exact_perplexity(of_codebook) for of_codebook in counts]))


def evaluate_model(
    model: nn.Module,
    variables: Any,
    dataset: ImageDataset,
    *,
    batch_size: int,
    collect_indices: bool = False,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
) -> EvaluationResult:
    """Reconstructs a dataset with a model and measures the result; changes nothing.

    Args:
      model: The autoencoder.
      variables: Its variables.
      dataset: The images.
      batch_size: Images per batch, over which ``perplexity_batch`` is measured.
      collect_indices: Keep the indices of all images.
      progress: Called with the number of images done.
      mesh: Devices that share each batch, those on which the variables are; one device by default.

    Returns:
      Numbers, first pictures, and indices if asked.
    """
    return evaluate(
        jax.tree_util.Partial(_reconstruct_with(model), variables),
        evaluation_batches(dataset, min(batch_size, len(dataset))),
        num_codes=model.quantizer.num_codes,
        num_codebooks=model.quantizer.num_codebooks,
        collect_indices=collect_indices,
        progress=progress,
        mesh=mesh,
    )


def evaluation_context(config: Any, num_codes: int, dataset: ImageDataset, step: int, split: str) -> dict[str, Any]:
    """What was evaluated, for the head of a report.

    Args:
      config: The run's config.
      num_codes: Of a codebook.
      dataset: The evaluated images.
      step: The checkpoint's training step.
      split: Name of the split.

    Returns:
      Facts by name.
    """
    fields = FAMILIES[config.quantizer.name].fields
    return {
        "dataset": dataset.name,
        "split": split,
        "image_size": config.data.image_size,
        "checkpoint_step": step,
        "model": config.model.name,
        "quantizer": config.quantizer.name,
        "num_codes": num_codes,
        "seed": config.seed,
    } | {name: config.quantizer[name] for name in ("estimator", "codebook_update") if name in fields}


# One function object per model: evaluations during training then share one compilation.
@functools.cache
def _reconstruct_with(model: nn.Module) -> Callable[..., Reconstruction]:
    def reconstruct(
        variables: Any, images: Float[Array, "batch height width channels"], mask: Bool[Array, " batch"]
    ) -> Reconstruction:
        output = model.apply(variables, images, mask)
        metrics = output.quantizer.metrics
        losses = (metrics.get(name) for name in ("quantization_error", "codebook_loss", "commitment_loss"))
        return Reconstruction(output.reconstruction, output.quantizer.indices, *losses)

    return reconstruct
