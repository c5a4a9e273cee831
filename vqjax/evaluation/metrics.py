"""Metrics of reconstructions and of the use of codes."""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, PyTree

from vqjax.errors import UserError
from vqjax.evaluation.metric import ImageMean, Metric, Numbers, Outputs
from vqjax.functional.metrics import exact_perplexity
from vqjax.functional.pixels import check_pixels

PSNR_CAP = 100.0
SSIM_WINDOW = 11
USAGE_EXAMPLES = 256
USAGE_TOKENS = 65536
_USAGE_TOKENS = f"usage_per_{USAGE_TOKENS}_tokens"
_SMALLEST_VARIANCE = 1e-7
_SSIM_SIGMA = 1.5
_SSIM_K1 = 0.01
_SSIM_K2 = 0.03
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIZE = SSIM_WINDOW * 2 ** (len(_MS_SSIM_WEIGHTS) - 1)

Images = Float[Array, "batch _ _ channels"]


class ImageCount(Metric):
    """Number of images in the split, and batch size."""

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "images": "images of the split, each seen once",
            "batch_size": "images per batch, including padding in the last batch",
        }

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return outputs["valid"]

    def init(self) -> Numbers:
        return {"images": 0, "batch_size": 0}

    def update(self, state: Numbers, measured: PyTree[Array]) -> Numbers:
        return {"images": state["images"] + int(np.sum(measured)), "batch_size": len(measured)}

    def compute(self, state: Numbers) -> Numbers:
        return state


class MSE(ImageMean):
    """Mean squared error of reconstructions, and the pixel variance, for comparison."""

    higher_is_better: ClassVar = {"mse_01": False}

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "mse_01": "mean squared error, pixels in [0, 1], reconstruction clipped, mean over images",
            "mse_pm1": "the same with pixels in [-1, 1]",
            "variance_01": "variance over all pixels and channels of the split, pixels in [0, 1]",
            "mse_over_variance": "mse_01 / variance_01",
        }

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        pixels = _pixels(outputs)
        return {
            "mse_01": mean_squared_error(pixels, _reconstruction(outputs)),
            # Centered at 0.5, to avoid cancellation in E[x^2] - E[x]^2 in float32.
            "pixel": jnp.mean(pixels - 0.5, axis=(1, 2, 3)),
            "pixel_squared": jnp.mean(jnp.square(pixels - 0.5), axis=(1, 2, 3)),
        }

    def numbers(self, means: dict[str, float]) -> Numbers:
        error, variance = means["mse_01"], max(0.0, means["pixel_squared"] - means["pixel"] ** 2)
        return {
            "mse_01": error,
            "mse_pm1": 4 * error,
            "variance_01": variance,
            # That of images of one color is what float32 leaves of it.
            "mse_over_variance": error / variance if variance > _SMALLEST_VARIANCE else None,
        }


class PSNR(ImageMean):
    """Peak signal-to-noise ratio of reconstructions, and of a baseline that replaces each image by its mean color."""

    higher_is_better: ClassVar = {"psnr": True}

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "psnr": "dB, per image, pixels in [0, 1], reconstruction clipped, capped at 100, mean over images",
            "psnr_mean_color": "the same when each image is replaced by its own mean color",
            "psnr_gain": "psnr - psnr_mean_color",
        }

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        pixels = _pixels(outputs)
        mean_color = jnp.broadcast_to(jnp.mean(pixels, axis=(1, 2), keepdims=True), pixels.shape)
        return {
            "psnr": jnp.minimum(psnr(pixels, _reconstruction(outputs)), PSNR_CAP),
            "psnr_mean_color": jnp.minimum(psnr(pixels, mean_color), PSNR_CAP),
        }

    def numbers(self, means: dict[str, float]) -> Numbers:
        return means | {"psnr_gain": means["psnr"] - means["psnr_mean_color"]}


class SSIM(ImageMean):
    """Structural similarity of reconstructions, at one scale and at five; None for images that are too small for it."""

    higher_is_better: ClassVar = {"ssim": True, "ms_ssim": True}

    @property
    def protocol(self) -> dict[str, str]:
        how = (
            f"Gaussian window of {SSIM_WINDOW}, sigma {_SSIM_SIGMA}, per channel, pixels in [0, 1], "
            "reconstruction clipped"
        )
        return {"ssim": how, "ms_ssim": f"five scales, {how}"}

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        size, pair = min(outputs["image"].shape[1:3]), (_pixels(outputs), _reconstruction(outputs))
        values = {"ssim": ssim(*pair)} if size >= SSIM_WINDOW else {}
        return values | ({"ms_ssim": ms_ssim(*pair)} if size >= MS_SSIM_SIZE else {})

    def numbers(self, means: dict[str, float]) -> Numbers:
        return {"ssim": None} | means


class TokenLosses(Metric):
    """Quantization error and losses as the quantizer reports them; losses that it does not report are omitted."""

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "quantization_error": "mean squared distance of latents to their codes, per dimension",
            "codebook_loss": "loss that pulls codes to latents, as the quantizer reports it, mean over tokens",
            "commitment_loss": "loss that pulls latents to codes, as the quantizer reports it, mean over tokens",
        }

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        means = {name: outputs[name] for name in self.protocol if name in outputs}
        return {"images": jnp.sum(outputs["valid"]), **means}

    def init(self) -> dict[str, float]:
        return {}

    def update(self, state: dict[str, float], measured: PyTree[Array]) -> dict[str, float]:
        images = int(measured["images"])
        # The values are means over the tokens of a batch. Every image has the same number of tokens, so weighting by
        # images is exact.
        sums = {name: float(value) * images for name, value in measured.items()} | {"images": images}
        return {name: state.get(name, 0.0) + value for name, value in sums.items()}

    def compute(self, state: dict[str, float]) -> Numbers:
        return {name: state[name] / state["images"] for name in self.protocol if name in state}


class _Window(NamedTuple):
    """Codes in the images, or tokens, of the window that is being filled, and the usage in those before it."""

    used: Bool[np.ndarray, "codebooks num_codes"]
    filled: int = 0
    usages: tuple[float, ...] = ()

    def added(self, rows: Int64[np.ndarray, "rows tokens codebooks"], length: int, num_codes: int) -> "_Window":
        """The window after these images or tokens, where one holds ``length`` of them."""
        used, filled, usages = self.used.copy(), self.filled, self.usages
        codebooks = np.arange(rows.shape[-1])
        while len(rows):
            now, rows = rows[: length - filled], rows[length - filled :]
            used[codebooks, now] = True
            filled += len(now)
            if filled == length:
                usages, filled = (*usages, int(used.sum()) / num_codes), 0
                used[:] = False
        return _Window(used, filled, usages)


class _CodeCounts(NamedTuple):
    """Code counts of the split, the perplexities of its full batches and of its padded ones, and its windows."""

    of_split: Int64[np.ndarray, "codebooks num_codes"]
    examples: _Window
    tokens: _Window
    full_perplexities: tuple[float, ...] = ()
    partial_perplexities: tuple[float, ...] = ()
    tokens_per_example: int = 0


class CodeUsage(Metric):
    """Perplexity and usage of the codes, and the bits that the indices take.

    Papers mean different things by usage, which differ by factors: here each has a name of its own, and is left out
    where a split is too small for it.

    Attributes:
      num_codes: Number of codes of each codebook, in the order of the indices of one latent position: of the stages of
        a residual quantizer, for example, which are the last axis of ``indices``. A number for one codebook. Usage is
        measured per codebook, and averaged.
      example: What the names of numbers call a row of the batch: ``"image"`` or ``"clip"``.
    """

    num_codes: int | tuple[int, ...] = flax.struct.field(pytree_node=False)
    example: Literal["image", "clip"] = flax.struct.field(pytree_node=False, default="image")

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "perplexity_batch": "exp(entropy) of the codes of one batch of batch_size, mean over codebooks and full "
            "batches",
            "perplexity_split": "exp(entropy) of the codes of the whole split, mean over codebooks",
            "usage_split": "share of codes used at least once in the split",
            self._usage_examples: f"share of codes used in {USAGE_EXAMPLES} {self.example}s, mean over consecutive "
            "groups of so many, as in the rotation-trick and ViT-VQGAN papers",
            _USAGE_TOKENS: f"share of codes used in {USAGE_TOKENS} latent positions, mean over consecutive windows of "
            "so many, as in LlamaGen",
            "dead_codes_split": "codes never used in the split",
            self._tokens: f"indices per {self.example}",
            f"bits_per_{self.example}": f"{self._tokens} * log2(number of codes)",
            f"entropy_bits_per_{self.example}": f"{self._tokens} * log2(perplexity), mean over codebooks, of the split",
        } | {
            name: f"{name.removesuffix(f'_{number}')} of codebook {number} alone, in the order of a latent's indices"
            for number in range(len(self._sizes))
            for name in self._names_of(number)
        }

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        indices, valid = outputs["indices"], outputs["valid"]
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise UserError(f"`indices` must be integers, got {indices.dtype}; pass those of the quantizer.")
        return {"valid": valid, "indices": indices.reshape(len(valid), -1, len(self._sizes))}

    def init(self) -> _CodeCounts:
        shape = (len(self._sizes), max(self._sizes))
        empty = _Window(np.zeros(shape, bool))
        return _CodeCounts(np.zeros(shape, np.int64), examples=empty, tokens=empty)

    def update(self, state: _CodeCounts, measured: PyTree[Array]) -> _CodeCounts:
        valid = np.asarray(measured["valid"])
        # Signed, so that unsigned ones do not wrap around.
        indices = np.asarray(measured["indices"])[valid].astype(np.int64)
        if not ((indices >= 0) & (indices < np.array(self._sizes))).all():
            raise UserError(
                f"indices must be in [0, num_codes) with num_codes={self.num_codes}, got others; pass the "
                "codebook_sizes of the quantizer that produced them."
            )
        of_codebooks = indices.reshape(-1, len(self._sizes)).T
        counts = np.stack([np.bincount(codes, minlength=max(self._sizes)) for codes in of_codebooks])
        field = "full_perplexities" if valid.all() else "partial_perplexities"
        positions = indices.reshape(-1, 1, len(self._sizes))
        return state._replace(
            of_split=state.of_split + counts,
            tokens_per_example=indices[0].size,
            examples=state.examples.added(indices, USAGE_EXAMPLES, sum(self._sizes)),
            tokens=state.tokens.added(positions, USAGE_TOKENS, sum(self._sizes)),
            **{field: (*getattr(state, field), _mean_perplexity(counts))},
        )

    def compute(self, state: _CodeCounts) -> Numbers:
        used, perplexities = np.count_nonzero(state.of_split, axis=1), [exact_perplexity(c) for c in state.of_split]
        mean_bits, entropy_bits = (float(np.mean(np.log2(numbers))) for numbers in (self._sizes, perplexities))
        windows = {self._usage_examples: state.examples.usages, _USAGE_TOKENS: state.tokens.usages}
        each = {}
        for number, size in enumerate(self._sizes):
            measured = perplexities[number], used[number] / size, size - int(used[number])
            each |= dict(zip(self._names_of(number), measured, strict=False))
        return {
            "perplexity_batch": float(np.mean(state.full_perplexities or state.partial_perplexities)),
            "perplexity_split": _mean_perplexity(state.of_split),
            "usage_split": int(used.sum()) / sum(self._sizes),
            **{name: float(np.mean(usages)) for name, usages in windows.items() if usages},
            "dead_codes_split": sum(self._sizes) - int(used.sum()),
            self._tokens: state.tokens_per_example,
            f"bits_per_{self.example}": state.tokens_per_example * mean_bits,
            f"entropy_bits_per_{self.example}": state.tokens_per_example * entropy_bits,
        } | each

    @property
    def _tokens(self) -> str:
        return f"tokens_per_{self.example}"

    @property
    def _usage_examples(self) -> str:
        return f"usage_per_{USAGE_EXAMPLES}_{self.example}s"

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.num_codes if isinstance(self.num_codes, tuple) else (self.num_codes,)

    def _names_of(self, number: int) -> tuple[str, ...]:
        """Return the names of a codebook's own numbers; none if there is only one codebook."""
        names = ("perplexity_split", "usage_split", "dead_codes_split")
        return () if len(self._sizes) == 1 else tuple(f"{name}_{number}" for name in names)


class Classification(ImageMean):
    """Accuracy of a classifier, by its first choice and by its first five, and cross-entropy."""

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "top1": "share of images whose class has the largest score",
            "top5": "share of images whose class is among the five largest scores, or as many as there are classes",
            "cross_entropy": "negative logarithm of the probability of the class, mean over images, in nats",
        }

    def per_image(self, outputs: Outputs) -> dict[str, Float[Array, " batch"]]:
        logits, labels = outputs["logits"], outputs["label"]
        of_class = jnp.take_along_axis(logits, labels[:, None], axis=1)
        # Ties count against the classifier, and so does what is no number, so that neither is a success.
        rank = jnp.sum(~(logits < of_class), axis=1) - 1
        return {
            "top1": (rank < 1).astype(jnp.float32),
            "top5": (rank < 5).astype(jnp.float32),
            "cross_entropy": jax.nn.logsumexp(logits, axis=1) - of_class[:, 0],
        }


class AtPlace(Metric):
    """A metric of one of several quantizers, whose numbers have its place in their names.

    Attributes:
      metric: A metric of ``indices``.
      place: The place; its indices are ``indices_PLACE`` among the outputs.
    """

    metric: Metric
    place: str = flax.struct.field(pytree_node=False)

    @property
    def protocol(self) -> dict[str, str]:
        return {f"{name}_{self.place}": text for name, text in self.metric.protocol.items()}

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        return self.metric.measure(outputs | {"indices": outputs[f"indices_{self.place}"]})

    def init(self) -> Any:
        return self.metric.init()

    def update(self, state: Any, measured: PyTree[Array]) -> Any:
        return self.metric.update(state, measured)

    def compute(self, state: Any) -> Numbers:
        return {f"{name}_{self.place}": value for name, value in self.metric.compute(state).items()}


def tokenizer_metrics(num_codes: int | tuple[int, ...]) -> tuple[Metric, ...]:
    """Return the metrics of a tokenizer's evaluation, in the order in which reports show them.

    Args:
      num_codes: Number of codes of each codebook, the ``codebook_sizes`` of a quantizer; a number for one codebook.

    Example:
      >>> [type(metric).__name__ for metric in tokenizer_metrics(num_codes=512)]
      ['ImageCount', 'MSE', 'PSNR', 'SSIM', 'TokenLosses', 'CodeUsage']
    """
    return ImageCount(), MSE(), PSNR(), SSIM(), TokenLosses(), CodeUsage(num_codes)


def _pixels(outputs: Outputs) -> Float[Array, "batch height width channels"]:
    images = outputs["image"]
    if images.dtype != jnp.uint8:
        raise UserError(
            f"`image` of a batch must be uint8 in [0, 255], got {images.dtype}; pass the images themselves."
        )
    return images.astype(jnp.float32) / 255


def _reconstruction(outputs: Outputs) -> Float[Array, "batch height width channels"]:
    reconstruction = outputs["reconstruction"]
    if not jnp.issubdtype(reconstruction.dtype, jnp.floating):
        raise UserError(
            f"`reconstruction` must be floats in [-1, 1], got {reconstruction.dtype}; pass what the decoder returns."
        )
    return jnp.clip((reconstruction.astype(jnp.float32) + 1) / 2, 0, 1)


def _check_pair(x: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Refuse images that would be broadcast, or whose bits would wrap around."""
    if x.shape != y.shape or x.ndim != 4:
        raise UserError(
            f"`x` and `y` must be images of one shape, [batch, height, width, channels], got {x.shape} and {y.shape}; "
            "pass both with all four axes."
        )
    for name, images in (("x", x), ("y", y)):
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"`{name}` must be floats, got {images.dtype}; divide uint8 by 255.")


def _check_in_01(x: Array | np.ndarray, y: Array | np.ndarray) -> None:
    _check_pair(x, y)
    for name, images in (("x", x), ("y", y)):
        check_pixels(
            name, images, 0.0, 1.0, advice="divide pixels in [0, 255] by 255, and map x in [-1, 1] to (x + 1) / 2"
        )


def _mean_perplexity(counts: Int64[np.ndarray, "codebooks num_codes"]) -> float:
    return float(np.mean([exact_perplexity(of_codebook) for of_codebook in counts]))


def mean_squared_error(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Average the squared difference over the pixels and channels of each image.

    Args:
      x: Images.
      y: Images in the same range.

    Returns:
      One value per image, in the square of the pixels' unit.

    Raises:
      UserError: The two are not images of one shape and of a floating-point dtype.

    Example:
      >>> mean_squared_error(jnp.zeros([1, 4, 4, 3]), jnp.full([1, 4, 4, 3], 0.5)).tolist()
      [0.25]
    """
    _check_pair(x, y)
    return jnp.mean(jnp.square(x - y), axis=(1, 2, 3))


def psnr(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Compute the peak signal-to-noise ratio of each image: -10 log10(mean squared error), as the peak is 1.

    Args:
      x: Images in [0, 1].
      y: Images in [0, 1].

    Returns:
      Decibels, one value per image; infinity if the two are identical, so cap it before averaging.

    Raises:
      UserError: The two are not images of one shape in [0, 1].

    Example:
      >>> psnr(jnp.zeros([1, 4, 4, 3]), jnp.full([1, 4, 4, 3], 0.1)).round(3).tolist()
      [20.0]
    """
    _check_in_01(x, y)
    return -10.0 * jnp.log10(mean_squared_error(x, y))


def ssim(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    """Compute the structural similarity of each image, with the settings of the paper.

    With means, variances and covariance under a Gaussian window (11 pixels, sigma 1.5), C1 = 0.01^2, C2 = 0.03^2:

      SSIM = (2 mx my + C1) (2 cov + C2) / ((mx^2 + my^2 + C1) (vx + vy + C2))

    averaged over channels and over the places where the window lies within the image. Equals scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)``.

    Args:
      x: Images in [0, 1], at least 11 pixels high and wide.
      y: Images in [0, 1].

    Returns:
      One value per image, in [-1, 1]; 1 if the two are identical.

    Raises:
      UserError: The two are not images of one shape in [0, 1], or they are smaller than the window.

    Example:
      >>> x = jnp.linspace(0.0, 1.0, 12 * 12).reshape(1, 12, 12, 1)
      >>> ssim(x, x).round(4).tolist()
      [1.0]

    Source: Wang et al., 2004 (Image quality assessment: from error visibility to structural similarity).
    """
    _check_in_01(x, y)
    height, width = x.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"x must have images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels for SSIM, got {height} x {width}; "
            "leave SSIM out, or use larger images."
        )
    luminance, structure = _ssim_terms(x, y)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def ms_ssim(
    x: Float[Array, "batch height width channels"], y: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    r"""Compute the multi-scale structural similarity of each image, with the settings of the paper.

    .. math:: \mathrm{SSIM}_5^{w_5} \prod_{s<5} \mathrm{CS}_s^{w_s}, \quad w = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

    SSIM and its second factor CS are means over places, as in :func:`ssim`, at five scales, each with averages over
    2x2 pixels of the one before, of which an odd last row or column is left out. The product is of each channel, and
    the result the mean over channels; negative factors count as zero.

    Args:
      x: Images in [0, 1], at least 176 pixels high and wide.
      y: Images in [0, 1].

    Returns:
      One value per image, in [0, 1]; 1 if the two are identical.

    Raises:
      UserError: The two are not images of one shape in [0, 1], or they are too small.

    Example:
      >>> x = jnp.linspace(0.0, 1.0, 176 * 176).reshape(1, 176, 176, 1)
      >>> ms_ssim(x, x).round(4).tolist()
      [1.0]

    Source: Wang et al., 2003 (Multiscale structural similarity for image quality assessment).
    """
    _check_in_01(x, y)
    height, width = x.shape[1:3]
    if min(height, width) < MS_SSIM_SIZE:
        raise UserError(
            f"x must have images of at least {MS_SSIM_SIZE} x {MS_SSIM_SIZE} pixels for MS-SSIM, got {height} x "
            f"{width}; leave MS-SSIM out, or use larger images."
        )
    product = jnp.ones((x.shape[0], x.shape[-1]))
    for scale, weight in enumerate(_MS_SSIM_WEIGHTS):
        if scale > 0:
            x, y = _halved(x), _halved(y)
        luminance, structure = _ssim_terms(x, y)
        last = scale == len(_MS_SSIM_WEIGHTS) - 1
        factor = jnp.mean(luminance * structure if last else structure, axis=(1, 2))
        product *= jnp.maximum(factor, 0.0) ** weight
    return jnp.mean(product, axis=1)


def _ssim_terms(x: Images, y: Images) -> tuple[Images, Images]:
    """The factors of luminance, and of contrast and structure, at each place of the window."""
    # To avoid cancellation in float32, compute variances around the mean; they do not depend on the origin.
    origin = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    x, y = x - origin, y - origin
    mean_x, mean_y = _blur(x), _blur(y)
    covariance = _blur(x * y) - mean_x * mean_y
    variances = _blur(x * x + y * y) - mean_x**2 - mean_y**2
    mean_x, mean_y = mean_x + origin, mean_y + origin
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _halved(x: Images) -> Images:
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def _blur(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch inner_height inner_width channels"]:
    # Two products with banded matrices: far faster than a depthwise convolution on a CPU.
    rows, columns = (_blur_matrix(size) for size in images.shape[1:3])
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, images, precision="highest")


def _blur_matrix(size: int) -> Float[np.ndarray, "inner_size size"]:
    radius = SSIM_WINDOW // 2
    weights = [math.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2) for offset in range(-radius, radius + 1)]
    inner = size - 2 * radius
    bands = [weight * np.eye(inner, size, offset) for offset, weight in enumerate(weights)]
    return (np.sum(bands, axis=0) / sum(weights)).astype(np.float32)
