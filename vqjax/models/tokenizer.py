"""Trained tokenizers: images to code indices and back."""

import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, Int, Integer, PyTree, UInt8

from vqjax.errors import UserError
from vqjax.functional.pixels import check_pixels, value_range
from vqjax.models.layers import Images
from vqjax.models.pretrained import export_program, located, read_pretrained, upload, write_pretrained

NETWORK = "generator"
"""Key of the tokenizer among the networks of a training state; adversarial tasks train it as their generator."""

_CHANNELS = (1, 3, 4)


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
        images: Float[Array | np.ndarray, "batch height width channels"]
        | UInt8[Array | np.ndarray, "batch height width channels"],
    ) -> Int[Array, " batch *tokens"]:
        """Return the code indices of images.

        Args:
          images: uint8 in [0, 255], or floats in [-1, 1], which reconstructions may overshoot. Floats that lie in
            [0, 1] altogether are most likely of that range, which is warned of.

        Returns:
          int32 indices, of one image for each row.

        Raises:
          UserError: The images are not such a batch, or do not fit the model.
        """
        images = _array(images)
        if images.ndim != 4:
            hint = "add the axis of the batch with images[None]" if images.ndim == 3 else "stack whole images"
            raise UserError(f"`images` must be [batch, height, width, channels], got shape {images.shape}; {hint}.")
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
        return self._apply("encode", "images", jnp.asarray(images, jnp.float32), hint)

    def decode(self, indices: Integer[Array | np.ndarray, " batch *tokens"]) -> Images:
        """Return images from code indices.

        Args:
          indices: Integers in [0, number of codes), as ``encode`` returns them; -1 stands for no code.

        Returns:
          Images in [-1, 1], except for what an unbounded decoder overshoots.

        Raises:
          UserError: The indices are not such a batch, or there are no codes of these numbers.
        """
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
        hint = "pass what encode returns, with the axis of the batch and all axes of the grid"
        images = self._apply("decode", "indices", indices, hint)
        if images.ndim != 4:
            raise UserError(f"`indices` must be whole grids, got shape {indices.shape}; {hint}.")
        return images

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
          >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
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
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> bytes:
        """Export a method with the weights as a StableHLO program, which runs without this package.

        ``jax.export.deserialize(program).call(batch)`` takes batches of any size: float32 images in [-1, 1] to
        encode, int32 indices to decode.

        Args:
          method: ``"encode"`` or ``"decode"``.
          shape: Shape of one image, or of the indices of one.
          platforms: Platforms to run on.

        Returns:
          The program, to be written into a file.

        Raises:
          UserError: The shape does not fit the model.

        Example:
          >>> from vqjax.models.registry import build_model
          >>> model = build_model({"name": "sonnet", "width": 8, "latent_dim": 4}, {"name": "vq", "num_codes": 16})
          >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
          >>> program = Tokenizer(model, variables, config={}, step=0).export("decode", (4, 4))
          >>> jax.export.deserialize(program).call(np.zeros((5, 4, 4), np.int32)).shape
          (5, 16, 16, 3)
        """
        example = jax.ShapeDtypeStruct(tuple(shape), np.float32 if method == "encode" else np.int32)
        with _fitting("shape", example.shape, "pass that of one image, or of the indices of one"):
            return export_program(self.model, self.variables, method, example, tuple(platforms))

    @property
    def checksum(self) -> str:
        """SHA-256 of the variables in hexadecimal digits, by which tokens know who made them."""
        found = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.variables):
            array = np.ascontiguousarray(leaf)
            found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()

    def _apply(self, method: str, name: str, x: Array | np.ndarray, hint: str) -> Array:
        with _fitting(name, x.shape, hint):
            return _apply(self.model, self.variables, jnp.asarray(x), method)


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


@jax.jit(static_argnames=("model", "method"))
def _apply(model: nn.Module, variables: Any, x: Array, method: str) -> Array:
    return model.apply(variables, x, method=method)
