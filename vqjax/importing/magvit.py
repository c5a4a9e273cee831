"""Tokenizers trained with MaskGIT or Open-MAGVIT2."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vqjax.errors import UserError
from vqjax.functional.regularizers import EntropyLoss
from vqjax.importing.state_dict import Entry, read_model, read_state_dict
from vqjax.importing.vqgan import Arrays, first_stage, shape_of
from vqjax.models.registry import magvit
from vqjax.models.vqvae import VQVAE
from vqjax.quantizers.binary import LFQ
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.vector import VectorQuantizer

EntryOf = Callable[[tuple[str, ...], int], Entry]

_ADVICE = "pass the state of the whole tokenizer"


def open_magvit2(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``VQModel`` of Open-MAGVIT2 into a model and its variables.

    Entries may have the prefix ``first_stage_model.``, and a moving average of the parameters (``model_ema.``) is taken
    if there is one. Features of the codes are in the reverse order, as the first one is the lowest bit of the index
    there and the highest here; indices are the same.

    Args:
      arrays: The state dict, or the path of a file with it; see :func:`taming`.
      config: None; sizes are read from the shapes of the arrays, and nothing of the original's config is used.

    Returns:
      The model, for images in [-1, 1], and its variables.

    Raises:
      UserError: As :func:`taming`.

    Source: SEED-Voken, ``src/Open_MAGVIT2/models/lfqgan.py``.
    """
    arrays = first_stage(read_state_dict(arrays))
    outer, bits = (shape_of(arrays, f"encoder.conv_{end}.weight", 4) for end in ("in", "out"))
    levels = _numbers(arrays, r"encoder\.down\.(\d+)\.block\.0\.")
    ends = [shape_of(arrays, f"encoder.down.{level}.block.0.conv2.weight", 4)[0] for level in range(levels)]
    model = magvit(
        LFQ(bits[0], entropy_weight=0.1, commitment_weight=0.25),
        variant="open_magvit2",
        channels=outer[0],
        multipliers=tuple(end // outer[0] for end in ends),
        num_res_blocks=_numbers(arrays, r"encoder\.mid_block\.(\d+)\."),
        latent_dim=bits[0],
        image_channels=outer[1],
    )
    return model, {"params": _with_bits_reversed(_read(arrays, model, outer[1], _of_open_magvit2))}


def maskgit(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn the tokenizer of MaskGIT into a model and its variables.

    The original takes images in [0, 1]; the model here takes those in [-1, 1], as all others do.

    Args:
      arrays: The variables by dotted names (``encoder.Conv_0.kernel``), or the path of
        ``tokenizer_imagenet256_checkpoint``, a file of MessagePack, of which nothing is executed.
      config: None; sizes are read from the shapes of the arrays, and nothing of the original's config is used.

    Returns:
      The model and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or it is a different kind of model.

    Source: google-research/maskgit, ``maskgit/nets/vqgan_tokenizer.py``.
    """
    arrays = {key.removeprefix("params."): value for key, value in read_state_dict(arrays).items()}
    outer, codes = shape_of(arrays, "encoder.Conv_0.kernel", 4), shape_of(arrays, "quantizer.codebook", 2)
    # The decoder has a convolution for each level and one more, the encoder blocks for each level and one more.
    convolutions, blocks = (_numbers(arrays, rf"{name}_(\d+)\.") for name in (r"decoder\.Conv", r"encoder\.ResBlock"))
    if convolutions < 2 or not blocks or blocks % convolutions:
        raise UserError(
            f"arrays must be those of MaskGIT's tokenizer, got {blocks} residual blocks of the encoder and "
            f"{convolutions} convolutions of the decoder; {_ADVICE}."
        )
    levels, count = convolutions - 1, blocks // convolutions
    ends = [shape_of(arrays, f"encoder.ResBlock_{level * count}.Conv_1.kernel", 4)[3] for level in range(levels)]
    quantizer = VectorQuantizer(
        codes[0],
        estimator="straight_through",
        codebook=GradientCodebook(weight=1.0),
        commitment_weight=0.25,
        regularizers=(EntropyLoss(0.1, temperature=0.01),),
    )
    model = magvit(
        quantizer,
        variant="maskgit",
        channels=outer[3],
        multipliers=tuple(end // outer[3] for end in ends),
        num_res_blocks=count,
        latent_dim=codes[1],
        pixels="unit",
        image_channels=outer[2],
    )
    return model, {"params": _read(arrays, model, outer[2], _of_maskgit(levels, count))}


def _numbers(arrays: Mapping[str, Any], pattern: str) -> int:
    """How many numbers the names of entries have in a place."""
    return len({match[1] for match in (re.match(pattern, key) for key in arrays) if match})


def _read(arrays: Mapping[str, Any], model: VQVAE, channels: int, entry_of: EntryOf) -> dict[str, Any]:
    pixels = 2 ** len(model.encoder.multipliers)
    return read_model(arrays, model, (pixels, pixels, channels), entry_of, _ADVICE)


def _with_bits_reversed(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the features of latents and codes in the reverse order."""

    def reverse(path: tuple[str, ...], array: jax.Array) -> jax.Array:
        if path[:2] == ("encoder", "conv_out"):
            return jnp.flip(array, -1)
        takes_codes = path[:2] == ("decoder", "conv_in") or path[-2] in ("scale", "bias")
        return jnp.flip(array, -2) if takes_codes and path[-1] == "kernel" else array

    return flax.traverse_util.path_aware_map(reverse, params)


def _of_open_magvit2(path: tuple[str, ...], ndim: int) -> Entry:
    network, *modules, leaf = path
    side = "down" if network == "encoder" else "up"
    name = ".".join(modules)
    name = re.sub(r"^level_(\d+)_block_(\d+)", rf"{side}.\1.block.\2", name)
    name = re.sub(r"^middle_block_(\d+)", r"mid_block.\1", name)
    name = re.sub(r"^level_(\d+)_downsample", r"down.\1.downsample", name)
    name = re.sub(r"^level_(\d+)_upsample", r"up.\1.upsample.conv1", name)
    name = re.sub(r"^level_(\d+)_norm\.scale", r"adaptive.\1.gamma", name)
    name = re.sub(r"^level_(\d+)_norm\.bias", r"adaptive.\1.beta", name)
    name = re.sub(r"\.(norm|conv)_(\d)$", r".\1\2", name).replace("shortcut", "nin_shortcut")
    axes = (3, 2, 0, 1) if ndim == 4 else (1, 0) if ndim == 2 else (0,)
    return Entry(f"{network}.{name}.{'bias' if leaf == 'bias' else 'weight'}", axes)


def _of_maskgit(levels: int, count: int) -> EntryOf:
    """Places of the parameters of a tokenizer of so many levels, of so many blocks each."""

    def module(network: str, name: str) -> str:
        is_encoder = network == "encoder"
        if name == "conv_in":
            return "Conv_0"
        if name == "conv_out":
            return "Conv_1" if is_encoder else f"Conv_{levels}"
        if name == "norm_out":
            return "GroupNorm_0"
        kind, *numbers = re.match(r"([a-z]+)(?:_(\d+))?_(?:block|upsample)(?:_(\d+))?$", name).groups()
        # Blocks and convolutions have numbers in the order in which they are computed.
        if kind == "middle":
            return f"ResBlock_{(levels if is_encoder else 0) * count + int(numbers[1])}"
        place = int(numbers[0]) if is_encoder else levels - int(numbers[0])
        return f"Conv_{place}" if numbers[1] is None else f"ResBlock_{place * count + int(numbers[1])}"

    inner = {"norm_1": "GroupNorm_0", "norm_2": "GroupNorm_1", "conv_1": "Conv_0", "conv_2": "Conv_1"}
    inner |= {"shortcut": "Conv_2"}

    def entry_of(path: tuple[str, ...], ndim: int) -> Entry:
        if path[0] == "quantizer":
            return Entry("quantizer.codebook", (0, 1))
        network, name, *within, leaf = path
        names = [network, module(network, name), *(inner[part] for part in within), leaf]
        return Entry(".".join(names), tuple(range(ndim)))

    return entry_of
