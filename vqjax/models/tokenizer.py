"""Trained tokenizers: images or clips to code indices and back."""

import hashlib
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, Int, Integer, PyTree, UInt8

from vqjax.errors import UserError
from vqjax.functional.pixels import check_pixels, value_range
from vqjax.models.causal_video import STREAM, CausalVideoDecoder
from vqjax.models.pretrained import export_program, located, read_pretrained, upload, write_pretrained
from vqjax.models.vqvae import Images, takes_clips
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.quantizers.validation import is_count, require_choice

NETWORK = "generator"
"""Key of the tokenizer among the networks of a training state; adversarial tasks train it as their generator."""

_CHANNELS = (1, 3, 4)
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DECODE_HINT = "pass what encode returns, with the axis of the batch and all axes of the grid"


@dataclass(frozen=True)
class Tokenizer:
    """An autoencoder bound to its trained variables.

    Attributes:
      model: The autoencoder.
      variables: Trained variables of ``model``, with all collections.
      config: The config it was trained with, as a plain dictionary.
      step: The training step at which the variables were saved.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> images = np.zeros((2, 16, 16, 3), np.uint8)
      >>> tokenizer = Tokenizer(model, model.init(jax.random.key(0), jnp.zeros(images.shape)), config={}, step=0)
      >>> tokenizer.decode(tokenizer.encode(images)).shape
      (2, 16, 16, 3)
    """

    model: nn.Module
    variables: Any
    config: dict[str, Any]
    step: int

    def encode(
        self,
        images: Float[Array | np.ndarray, "batch *frames height width channels"]
        | UInt8[Array | np.ndarray, "batch *frames height width channels"],
    ) -> Int[Array, " batch *tokens"]:
        """Return the code indices of images, or of clips by a tokenizer of clips.

        Args:
          images: uint8 in [0, 255], or floats in [-1, 1], which reconstructions may overshoot. Floats that lie in
            [0, 1] altogether are most likely of that range, which is warned of. Clips have an axis of frames behind the
            first.

        Returns:
          int32 indices, of one image for each row.

        Raises:
          UserError: The images are not such a batch, or do not fit the model.
        """
        images, hint = self._checked(images)
        return self._apply("encode", "images", images, hint)

    def encode_parts(
        self, clips: Iterable[Float[Array | np.ndarray, "..."] | UInt8[Array | np.ndarray, "..."]]
    ) -> Iterator[Int[Array, " batch *tokens"]]:
        """Yield the code indices of clips that come part after part.

        Memory does not grow with the length of a clip. It needs a model that never looks ahead, ``causal_video``.

        Args:
          clips: Parts of the same clips, as :meth:`encode` takes them. Where the model has groups of 4 frames, the
            first has 1 more than a multiple of 4, and later ones a multiple of 4.

        Yields:
          int32 indices, along the axis behind the batch a part of those of the whole clips, but for codes that are
          equally near to rounding.

        Raises:
          UserError: The model looks ahead, or a part does not fit.

        Example:
          >>> from vqjax.models.registry import build_model
          >>> size = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1}
          >>> model = build_model({"name": "causal_video"} | size, {"name": "vq", "num_codes": 16})
          >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))
          >>> tokenizer, clips = Tokenizer(model, variables, config={}, step=0), np.zeros((1, 9, 16, 16, 3), np.uint8)
          >>> [part.shape for part in tokenizer.encode_parts([clips[:, :5], clips[:, 5:]])]
          [(1, 2, 8, 8), (1, 1, 8, 8)]
        """
        self._check_causal()
        stream: PyTree = {}
        for part in clips:
            images, hint = self._checked(part)
            with _fitting("clips", images.shape, hint):
                indices, stream = _apply_to_part(self.model, self.variables, stream, images, "encode")
            yield indices

    def decode_parts(
        self, indices: Integer[Array | np.ndarray, "batch groups *tokens"], *, tile: int | None = None
    ) -> Iterator[Float[Array | np.ndarray, "batch frames height width channels"]]:
        """Yield the frames of clips from code indices, one group of frames after another.

        Memory does not grow with the length of a clip. The frames are those of :meth:`decode`, to rounding. It needs a
        model that never looks ahead, ``causal_video``.

        Args:
          indices: As :meth:`decode` takes them.
          tile: Decode squares of so many positions, with what they depend on around them, one after another; None for
            whole frames. Squares need ``norm="position"`` and no attention.

        Yields:
          Frames in [-1, 1], except for what an unbounded decoder overshoots: one for the first grid of indices, then as
          many as each stands for.

        Raises:
          UserError: The model looks ahead, or sees whole frames, or there are no codes of these numbers.
        """
        self._check_causal()
        indices, margin = self._checked_indices(indices), self.model.decoder.margin
        if indices.ndim < 2:
            raise UserError(f"`indices` must be those of clips, got shape {indices.shape}; {_DECODE_HINT}.")
        if tile is not None and (margin is None or not is_count(tile)):
            raise UserError(
                "tile must be None for a decoder whose norms or attention see whole frames, else a positive number, "
                f"got {tile}; config.model.norm=position and no attention make one that sees parts."
            )
        streams: dict[Any, PyTree] = {}
        for group in range(indices.shape[1]):
            with _fitting("indices", indices.shape, _DECODE_HINT):
                codes = _apply(self.model, self.variables, jnp.asarray(indices[:, group : group + 1]), _codes)
                rows, columns = (_tiles(side, tile, margin or 0) for side in codes.shape[2:4])
                bands = []
                for row, column in itertools.product(rows, columns):
                    window = codes[:, :, row.seen, column.seen]
                    frames, streams[row, column] = _apply_to_part(
                        self.model, self.variables, streams.get((row, column), {}), window, _decode_codes
                    )
                    scale = frames.shape[2] // window.shape[2]
                    bands.append(frames[:, :, row.inside(scale), column.inside(scale)])
            across = itertools.batched(bands, len(columns))
            yield jnp.concatenate([jnp.concatenate(band, axis=3) for band in across], axis=2)

    def _check_causal(self) -> None:
        if not isinstance(self.model.decoder, CausalVideoDecoder):
            raise UserError(
                f"model must be one that never looks ahead to pass clips in parts, causal_video, got one with "
                f"{type(self.model.decoder).__name__}; pass whole clips."
            )
        if isinstance(self.model.quantizer, MultiScaleVQ) and self.model.quantizer.spatial_dims > 2:
            raise UserError(
                f"model must have a quantizer of frames to pass clips in parts, got MultiScaleVQ of spatial_dims="
                f"{self.model.quantizer.spatial_dims}, whose scales span the clip; pass whole clips."
            )

    def _checked(self, images: Any) -> tuple[Array, str]:
        """Images as the model takes them, and what to do if it refuses them."""
        images = _array(images)
        axes = ["batch", *(["frames"] if takes_clips(self.model) else []), "height", "width", "channels"]
        if images.ndim != len(axes):
            missing = images.ndim == len(axes) - 1
            hint = "add the axis of the batch with images[None]" if missing else "stack whole images"
            if missing and takes_clips(self.model):
                hint = "add the axis of the batch with clip[None], or of frames with images[:, None]"
            raise UserError(f"`images` must be [{', '.join(axes)}], got shape {images.shape}; {hint}.")
        if takes_clips(self.model) and 0 in images.shape:
            raise UserError(f"`images` must be at least one clip of one frame, got shape {images.shape}; pass some.")
        if images.dtype == np.uint8:
            images = jnp.asarray(images, jnp.float32) / 127.5 - 1
        else:
            check_pixels("images", images, -1.0, 1.0, advice="pass uint8, or scale x in [0, 255] to x / 127.5 - 1")
            least, largest = value_range(images) or (0.0, 0.0)
            if 0 <= least < largest <= 1:
                warnings.warn(
                    f"`images` must be in [-1, 1], got values from {least:.3g} to {largest:.3g}: if they are of "
                    "[0, 1], pass 2 * images - 1.",
                    stacklevel=2,
                )
        hint = "pass images of the channels and of a size that the model was trained for"
        if images.shape[-1] not in _CHANNELS and images.shape[1] in _CHANNELS:
            hint = "move the channels to the end with numpy.moveaxis(images, 1, -1)"
        return jnp.asarray(images, jnp.float32), hint

    def decode(self, indices: Integer[Array | np.ndarray, " batch *tokens"]) -> Images:
        """Return images or clips from code indices.

        Args:
          indices: Integers in [0, number of codes), as ``encode`` returns them; -1 stands for no code.

        Returns:
          Images in [-1, 1], except for what an unbounded decoder overshoots.

        Raises:
          UserError: The indices are not such a batch, or there are no codes of these numbers.
        """
        indices = self._checked_indices(indices)
        images = self._apply("decode", "indices", jnp.asarray(indices), _DECODE_HINT)
        if images.ndim != (5 if takes_clips(self.model) else 4):
            raise UserError(f"`indices` must be whole grids, got shape {indices.shape}; {_DECODE_HINT}.")
        return images

    def _checked_indices(self, indices: Any) -> Array | np.ndarray:
        indices = _array(indices)
        if not np.issubdtype(indices.dtype, np.integer):
            raise UserError(f"`indices` must be integers, got {indices.dtype}; pass what encode returns.")
        largest = max(self.model.quantizer.codebook_sizes) - 1
        found = value_range(indices)
        if found is not None and not (found[0] >= -1 and found[1] <= largest):
            raise UserError(
                f"`indices` must be in [0, {largest}], got {found[0]:.0f} to {found[1]:.0f}; pass what encode of this "
                "tokenizer returned."
            )
        sizes, axes = self.model.quantizer.codebook_sizes, len(self.model.quantizer.index_shape)
        if found is not None and len(set(sizes)) > 1 and axes == 1 and indices.shape[-1] <= len(sizes):
            of_codebook = np.max(np.asarray(indices), axis=tuple(range(indices.ndim - 1)))
            for number, (size, last) in enumerate(zip(sizes, of_codebook, strict=False)):
                if last >= size:
                    raise UserError(
                        f"`indices` must be below {size} in codebook {number}, got {last}; pass what encode of this "
                        "tokenizer returned."
                    )
        return indices

    def save_pretrained(self, directory: str | Path, *, card: str = "An image tokenizer.") -> Path:
        """Write the tokenizer into a directory to share: ``model.safetensors``, ``config.json`` and a card.

        Args:
          directory: The directory, created if it does not exist; files of the same names are replaced.
          card: Text of ``README.md``, in Markdown; ``vqjax share`` writes one with the evaluation of the run.

        Returns:
          The directory.

        Raises:
          UserError: No config can hold the model.

        Example:
          >>> import tempfile
          >>> from vqjax.models.registry import build_model
          >>> model = build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, {"name": "vq", "num_codes": 16})
          >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
          >>> directory = Tokenizer(model, variables, config={}, step=0).save_pretrained(tempfile.mkdtemp())
          >>> Tokenizer.from_pretrained(directory).model == model
          True
        """
        return self._save(directory, card, name=None)

    def _save(self, directory: str | Path, card: str, name: str | None) -> Path:
        facts = {"step": self.step, "checksum": self.checksum}
        texts = {"card": card, "name": name}
        return write_pretrained(directory, self.model, self.variables, config=self.config, facts=facts, **texts)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> "Tokenizer":
        """Load a tokenizer from a directory of :meth:`save_pretrained`, or from the hub.

        Nothing in the files is executed. The hub needs ``pip install "vqjax[hub]"``.

        Args:
          name: The directory, or ``OWNER/NAME`` on the hub.
          revision: Branch, tag or commit on the hub; its main branch by default.

        Returns:
          The tokenizer, whose ``config`` has the groups ``model`` and ``quantizer``.

        Raises:
          UserError: There is no such tokenizer, or its files are damaged.
        """
        directory = located(name, revision)
        model, variables, config = read_pretrained(directory)
        tokenizer = cls(
            model, variables, config={key: config[key] for key in ("model", "quantizer")}, step=config["step"]
        )
        if tokenizer.checksum != config["checksum"]:
            raise UserError(
                f"{directory} must hold files of one tokenizer, got weights that are not those of its config; load or "
                "save them again."
            )
        return tokenizer

    def push_to_hub(self, name: str, *, private: bool = False, card: str = "An image tokenizer.") -> str:
        """Upload what :meth:`save_pretrained` writes to the hub; needs ``pip install "vqjax[hub]"``.

        Args:
          name: ``OWNER/NAME``; created if it does not exist.
          private: Whether a new one is private.
          card: Text of its card, in Markdown.

        Returns:
          The address of the tokenizer.

        Raises:
          UserError: The name cannot be used, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as directory:
            return upload(self._save(directory, card, name), name, private=private)

    def export(
        self,
        method: Literal["encode", "decode"],
        shape: Sequence[int],
        platforms: str | Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> bytes:
        """Export a method with the weights as a StableHLO program, which runs without this package.

        ``jax.export.deserialize(program).call(batch)`` takes batches of any size: float32 images in [-1, 1] to
        encode, int32 indices to decode.

        Args:
          method: ``"encode"`` or ``"decode"``.
          shape: Shape of one image, or of the indices of one.
          platforms: Platforms to run on: ``"cpu"``, ``"cuda"``, ``"rocm"`` or ``"tpu"``, or several of them.

        Returns:
          The program, to be written into a file.

        Raises:
          UserError: The method or a platform is unknown, or the shape does not fit the model.

        Example:
          >>> from vqjax.models.registry import build_model
          >>> model = build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, {"name": "vq", "num_codes": 16})
          >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
          >>> program = Tokenizer(model, variables, config={}, step=0).export("decode", (4, 4))
          >>> jax.export.deserialize(program).call(np.zeros((5, 4, 4), np.int32)).shape
          (5, 16, 16, 3)
        """
        require_choice("method", method, ("encode", "decode"))
        platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms)
        for platform in platforms:
            require_choice("platforms", platform, _PLATFORMS)
        example = jax.ShapeDtypeStruct(tuple(shape), np.float32 if method == "encode" else np.int32)
        with _fitting("shape", example.shape, "pass that of one image, or of the indices of one"):
            return export_program(self.model, self.variables, method, example, platforms)

    @property
    def checksum(self) -> str:
        """SHA-256 of the variables in hexadecimal digits, by which tokens know who made them."""
        found = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.variables):
            array = np.ascontiguousarray(leaf)
            found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()

    def _apply(self, method: str, name: str, x: Array, hint: str) -> Array:
        with _fitting(name, x.shape, hint):
            return _apply(self.model, self.variables, x, method)


class _Tile(NamedTuple):
    """Positions along a side, from ``first`` to ``last``, of which the decoder sees those from ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int

    @property
    def seen(self) -> slice:
        return slice(self.start, self.end)

    def inside(self, scale: int) -> slice:
        """The pixels of the tile among those of what the decoder sees."""
        return slice(scale * (self.first - self.start), scale * (self.last - self.start))


def _tiles(side: int, tile: int | None, margin: int) -> list[_Tile]:
    """Tiles that cover a side, each seen with a margin, all of one length so that one program decodes them."""
    length = side if tile is None else min(side, tile + 2 * margin)
    firsts = range(0, side, tile or side)
    starts = [min(max(first - margin, 0), side - length) for first in firsts]
    return [
        _Tile(first, min(first + (tile or side), side), start, start + length)
        for first, start in zip(firsts, starts, strict=True)
    ]


@contextmanager
def _fitting(name: str, shape: tuple[int, ...], hint: str) -> Iterator[None]:
    try:
        yield
    except (FlaxError, TypeError, ValueError) as error:
        # Layers raise what they like about shapes that they cannot take.
        reason = f" ({error})" if isinstance(error, UserError) else ""
        raise UserError(f"`{name}` must fit the model, got shape {shape}{reason}; {hint}.") from error


def quantizer_variables(variables: PyTree) -> dict[str, PyTree]:
    """Return the variables of the quantizer among those of an autoencoder.

    Args:
      variables: Variables by collection.

    Example:
      >>> quantizer_variables({"params": {"encoder": 1}, "codebook": {"quantizer": {"codes": 2}}})
      {'codebook': {'codes': 2}}
    """
    return {collection: tree["quantizer"] for collection, tree in variables.items() if "quantizer" in tree}


def _array(values: Any) -> Array | np.ndarray:
    """An array as it is, because JAX would cut 64 bits to 32, and NumPy's of anything else."""
    return values if isinstance(values, jax.Array) else np.asarray(values)


_Method = str | Callable[[nn.Module, Array], Array]


@jax.jit(static_argnames=("model", "method"))
def _apply(model: nn.Module, variables: Any, x: Array, method: _Method) -> Array:
    return model.apply(variables, x, method=method)


@jax.jit(static_argnames=("model", "method"))
def _apply_to_part(model: nn.Module, variables: Any, stream: PyTree, x: Array, method: _Method) -> tuple[Array, PyTree]:
    """Result for a part of a clip, and what the layers keep of it."""
    return model.apply({**variables, **stream}, x, method=method, mutable=[STREAM])


def _codes(model: nn.Module, indices: Int[Array, " batch *tokens"]) -> Float[Array, "batch *grid dim"]:
    return model.quantizer.decode(indices)


def _decode_codes(model: nn.Module, codes: Float[Array, "batch *grid dim"]) -> Images:
    return model.decode_latents(codes, train=False)
