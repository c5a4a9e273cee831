"""VQGANs trained with taming-transformers, latent diffusion, diffusers, LlamaGen or IBQ."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from vqjax.errors import UserError
from vqjax.importing.state_dict import Entry, StateDict, read_model, read_state_dict, takes_config, write_params
from vqjax.models.registry import vqgan
from vqjax.models.tokenizer import quantizer_variables
from vqjax.models.vqgan import VQGANDecoder, VQGANEncoder
from vqjax.models.vqvae import VQVAE
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.ibq import IBQ
from vqjax.quantizers.vector import VectorQuantizer
from vqjax.quantizers.weightings import taming_legacy

Arrays = Mapping[str, Any] | str | os.PathLike[str]

# What the files of a training hold besides the autoencoder.
_OTHER_NETWORKS = ("loss.", "model_ema.decay", "model_ema.num_updates", "quantize.codebook_used")

_OTHER_KINDS = {
    "quantize.proj.weight": "a VQGAN with a Gumbel-softmax quantizer",
    "quantize.used": "a VQGAN whose indices are remapped to the used codes",
    "colorize": "a VQGAN of segmentation maps",
    "encoder.mid.attn_1.to_qkv.weight": "a VQGAN with linear attention",
}

_NOT_IMPORTED = {
    "double_z": "that is a variational autoencoder without codes",
    "tanh_out": "decoders that end in a tanh are not imported",
    "give_pre_end": "decoders that end before their last layers make no images",
}

_DIFFUSERS_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
_OLD_DIFFUSERS_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Names = Callable[[str], str]
"""The name of a parameter in a state dict, from its name in that of taming-transformers."""


@takes_config
def taming(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``VQModel`` of taming-transformers or latent diffusion into a model and its variables.

    The checkpoints of Table 3 of the rotation-trick paper have the same form. Entries may have the prefix
    ``first_stage_model.``. If there is a moving average of the parameters (``model_ema.``), it is taken.

    Args:
      arrays: The state dict, ``{key: tensor.cpu().numpy() for key, tensor in state_dict.items()}``, or the path of a
        file with it: a ``.safetensors`` file or a checkpoint, of which nothing is executed. Entries of the losses
        (``loss.``) are left out.
      config: Parameters of the original model: ``ddconfig``, ``n_embed`` and ``embed_dim``. What is left out is read
        from the shapes of the arrays.

    Returns:
      The model, for images in [-1, 1], and its variables.

    Raises:
      UserError: Entries are missing, surplus, of the wrong shape or not finite, or it is a different kind of model.

    Source: taming-transformers, ``taming/models/vqgan.py``; latent-diffusion, ``ldm/models/autoencoder.py``.
    """
    arrays = first_stage(read_state_dict(arrays))
    config = _with_sizes(config or {}, arrays)
    quantizer = VectorQuantizer(config["n_embed"], estimator="straight_through", **taming_legacy(0.25))
    return vqgan_model(arrays, config, quantizer)


@takes_config
def ibq(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn an ``IBQ`` of SEED-Voken into a model and its variables.

    Its state dict has the entries of a ``VQModel`` of taming-transformers, but it takes the code of the largest inner
    product, not the nearest one. If there is a moving average of the parameters (``model_ema.``), it is taken.

    Args:
      arrays: The state dict, or the path of a file with it; see :func:`taming`.
      config: Parameters of the original model: ``ddconfig``, ``n_embed`` and ``embed_dim``, and ``beta``, its weight of
        the loss of the codes (0.25). What is left out is read from the shapes of the arrays.

    Returns:
      The model, for images in [-1, 1], and its variables. Its loss is without the original's entropy term,
      ``EntropyPenalty(0.05)``.

    Raises:
      UserError: As :func:`taming`.

    Source: SEED-Voken, ``src/IBQ/models/ibqgan.py``.
    """
    arrays = first_stage(read_state_dict(arrays))
    config = _with_sizes(config or {}, arrays)
    return vqgan_model(arrays, config, IBQ(config["n_embed"], codebook_weight=config.get("beta", 0.25)))


@takes_config
def llamagen(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``VQModel`` of LlamaGen into a model and its variables.

    Args:
      arrays: The state dict, or the path of a ``.safetensors`` file; see :func:`taming`.
      config: Parameters of the original model: ``codebook_size``, ``codebook_embed_dim``, ``codebook_l2_norm``,
        ``commit_loss_beta``, ``encoder_ch_mult`` and ``z_channels``, and of its encoder ``ch`` and ``num_res_blocks``.
        Sizes that are left out are read from the shapes.

    Returns:
      The model, for images in [-1, 1], and its variables.

    Raises:
      UserError: As :func:`taming`.

    Source: LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``.
    """
    arrays, config = read_state_dict(arrays), config or {}
    sizes = _sizes(arrays, r"encoder\.conv_blocks\.(\d+)\.(res|attn)\.(\d+)\.", "encoder.mid.1.")
    there = {"ch": "ch", "encoder_ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks", "z_channels": "z_channels"}
    given = {name: config[key] for key, name in there.items() if key in config}
    # Attention at the coarsest level alone, whatever the size of the image.
    ddconfig = sizes["ddconfig"] | given
    last = len(ddconfig["ch_mult"]) - 1
    ddconfig |= {"resolution": 2**last, "attn_resolutions": [1]}
    quantizer = VectorQuantizer(
        config.get("codebook_size", sizes["n_embed"]),
        distance="cosine" if config.get("codebook_l2_norm", True) else "euclidean",
        estimator="straight_through",
        codebook=GradientCodebook(weight=1.0),
        commitment_weight=config.get("commit_loss_beta", 0.25),
    )
    taming_config = {"ddconfig": ddconfig, "embed_dim": config.get("codebook_embed_dim", sizes["embed_dim"])}

    def name(taming_name: str) -> str:
        place = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", taming_name)
        place = re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.conv_blocks.{last - int(level[1])}", place)
        place = place.replace(".block.", ".res.")
        return re.sub(r"\.mid\.(block_1|attn_1|block_2)", lambda part: f".mid.{_MIDDLE.index(part[1])}", place)

    return vqgan_model(arrays, taming_config, quantizer, name)


@takes_config
def diffusers(arrays: Arrays, config: Mapping[str, Any] | None = None) -> tuple[VQVAE, dict[str, Any]]:
    """Turn a ``VQModel`` of diffusers into a model and its variables.

    Args:
      arrays: The state dict, or the path of ``diffusion_pytorch_model.safetensors``; see :func:`taming`.
      config: The contents of the model's ``config.json``; None to read everything from the shapes of the arrays.

    Returns:
      The model, for images in [-1, 1], and its variables.

    Raises:
      UserError: As :func:`taming`.

    Source: diffusers, ``models/autoencoders/vq_model.py``.
    """
    arrays = {_present_name(key): value for key, value in read_state_dict(arrays).items()}
    pattern = r"encoder\.down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\."
    taming_config = _sizes(arrays, pattern, "encoder.mid_block.attentions.")
    if config is not None:
        taming_config |= _of_diffusers(config)
    last = len(taming_config["ddconfig"]["ch_mult"]) - 1
    num_codes = taming_config["n_embed"]
    quantizer = VectorQuantizer(num_codes, estimator="straight_through", **taming_legacy(0.25))
    return vqgan_model(arrays, taming_config, quantizer, _diffusers_names(last))


def _of_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in taming's form, from that of diffusers."""
    widths = list(config["block_out_channels"])
    if config.get("norm_type", "group") != "group":
        raise UserError(f"norm_type must be 'group', got {config['norm_type']!r}; MoVQ is a different model.")
    for option, known in (("norm_num_groups", (32,)), ("act_fn", ("silu", "swish"))):
        if config.get(option, known[0]) not in known:
            raise UserError(f"{option} must be {known[0]!r}, got {config[option]!r}; other models are not imported.")
    if any(width % widths[0] for width in widths):
        raise UserError(f"block_out_channels must be multiples of the first, got {widths}.")
    last = len(widths) - 1
    levels = [i for i, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn")]
    ddconfig = {
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.get("layers_per_block", 1),
        "resolution": 2**last,
        "attn_resolutions": [2 ** (last - level) for level in levels],
        "attn_type": "vanilla" if config.get("mid_block_add_attention", True) else "none",
        "z_channels": config["latent_channels"],
        "in_channels": config.get("in_channels", 3),
        "out_ch": config.get("out_channels", 3),
    }
    embed_dim = config.get("vq_embed_dim") or config["latent_channels"]
    return {"ddconfig": ddconfig, "embed_dim": embed_dim, "n_embed": config["num_vq_embeddings"]}


def to_diffusers(model: VQVAE, variables: Mapping[str, Any]) -> tuple[StateDict, dict[str, Any]]:
    """Turn a VQGAN into the state dict and config of a ``VQModel`` of diffusers.

    Args:
      model: A model of :class:`VQGANEncoder`, a Euclidean :class:`VectorQuantizer` of one head, and the
        :class:`VQGANDecoder` of the same sizes. Codes that a transform makes are written as they are used.
      variables: Its variables.

    Returns:
      Arrays by diffusers' names, to be written with ``safetensors.numpy.save_file``, and the contents of
      ``config.json``.

    Raises:
      UserError: diffusers has no such model.
    """
    encoder, quantizer = model.encoder, model.quantizer
    fits = type(encoder) is VQGANEncoder and isinstance(quantizer, VectorQuantizer)
    fits = fits and quantizer.distance == "euclidean" and quantizer.heads == 1
    fits = fits and quantizer.codebook_dim is None and quantizer.latent_norm is None
    if not fits or encoder.code_dim is None or encoder.code_norm or model.pixels != "symmetric":
        raise UserError(
            "model must be a VQGAN with code_dim, without code_norm, for symmetric pixels, and a VectorQuantizer of "
            "one head and Euclidean distance, without codebook_dim and latent_norm, got "
            f"{type(encoder).__name__} and {type(quantizer).__name__}; diffusers has no other VQModel."
        )
    levels = range(len(encoder.multipliers))
    if type(model.decoder) is not VQGANDecoder or _layers(model.decoder) != _layers(encoder):
        raise UserError(
            "model.decoder must be a VQGANDecoder with the sizes and latent_dim of the encoder, got other ones in "
            f"{type(model.decoder).__name__}; diffusers has one config for both."
        )
    codes = quantizer.clone(parent=None, name=None).apply(quantizer_variables(variables), method="code_vectors")
    kinds = ["AttnDownEncoderBlock2D" if encoder.has_attention(i) else "DownEncoderBlock2D" for i in levels]
    config = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [encoder.channels * multiplier for multiplier in encoder.multipliers],
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up").replace("Encoder", "Decoder") for kind in reversed(kinds)],
        "in_channels": variables["params"]["encoder"]["conv_in"]["kernel"].shape[2],
        "out_channels": model.decoder.image_channels,
        "latent_channels": encoder.latent_dim,
        "layers_per_block": encoder.num_res_blocks,
        "mid_block_add_attention": encoder.middle_attention,
        "norm_num_groups": 32,
        "norm_type": "group",
        "num_vq_embeddings": quantizer.num_codes,
        "vq_embed_dim": encoder.code_dim,
    }
    name = _diffusers_names(len(encoder.multipliers) - 1)
    return write_params(variables["params"] | {"quantizer": {"codes": codes}}, _entries(name)), config


def _layers(network: VQGANEncoder | VQGANDecoder) -> tuple[Any, ...]:
    """What the layers of an encoder or a decoder depend on."""
    attention = [network.has_attention(level) for level in range(len(network.multipliers))]
    sizes = network.channels, tuple(network.multipliers), network.num_res_blocks, network.latent_dim
    return *sizes, network.middle_attention, attention


def first_stage(arrays: StateDict) -> StateDict:
    """Return the entries of an autoencoder, alone or as first stage of another model; averages, if there are any.

    Args:
      arrays: The state dict.
    """
    prefix = "first_stage_model."
    inner = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)} or arrays
    # Averages are stored without the dots of the names.
    averages = {key.removeprefix("model_ema."): value for key, value in inner.items() if key.startswith("model_ema.")}
    others = {key: value for key, value in inner.items() if not key.startswith("model_ema.")}
    taken = {key: averages.get(key.replace(".", ""), value) for key, value in others.items()}
    return {key: value for key, value in taken.items() if not key.startswith(_OTHER_NETWORKS)}


def _with_sizes(config: Mapping[str, Any], arrays: StateDict) -> dict[str, Any]:
    """The config in taming's form, with what it leaves out."""
    sizes = _sizes(arrays, r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.", "encoder.mid.attn_1.")
    if config.get("l2_normalize", False):
        raise UserError("l2_normalize must be False, got True; lookups of normalized codes are not imported.")
    ddconfig = sizes["ddconfig"] | dict(config.get("ddconfig", {}))
    if ddconfig["attn_type"] == "none":
        # Whatever attn_resolutions says.
        ddconfig["attn_resolutions"] = []
    return sizes | dict(config) | {"ddconfig": ddconfig}


def _sizes(arrays: StateDict, pattern: str, middle_attention: str) -> dict[str, Any]:
    """The config in taming's form, from the shapes of arrays and the pattern of the names of the encoder's levels."""
    for key, kind in _OTHER_KINDS.items():
        if key in arrays:
            raise UserError(f"arrays must be those of a VQGAN with a plain codebook, got {kind} (it has {key!r}).")
    codes, sizes = shape_of(arrays, "quantize.embedding.weight", 2), encoder_sizes(arrays, pattern, middle_attention)
    return {"ddconfig": sizes, "n_embed": codes[0], "embed_dim": codes[1]}


def encoder_sizes(arrays: StateDict, pattern: str, middle_attention: str) -> dict[str, Any]:
    """Return the ``ddconfig`` of an autoencoder, from the shapes of its arrays.

    Args:
      arrays: Its state dict.
      pattern: Names of the levels of the encoder: the number of the level, the kind of its part and its number.
      middle_attention: Beginning of the names of the attention in the middle.

    Raises:
      UserError: It is another kind of model.
    """
    found = [match for match in (re.match(pattern, key) for key in arrays) if match]
    outer = shape_of(arrays, "encoder.conv_in.weight", 4)
    if not found:
        raise UserError(
            f"arrays must be those of an encoder with levels by names like {pattern!r}, got {sorted(arrays)[:3]}; "
            "use the importer of their format."
        )
    levels = sorted({int(match[1]) for match in found})
    blocks = {match[0] for match in found if match[1] == "0" and not match[2].startswith("att")}
    ends = [f"{_named(found, level)}norm2.weight" for level in levels]
    attending = sorted({int(match[1]) for match in found if match[2].startswith("att")})
    last = len(levels) - 1
    return {
        "ch": outer[0],
        "ch_mult": [shape_of(arrays, end, 1)[0] // outer[0] for end in ends],
        "num_res_blocks": len(blocks),
        # Which levels attend is all that matters.
        "resolution": 2 ** max(last, 0),
        "attn_resolutions": [2 ** (last - level) for level in attending],
        "attn_type": "vanilla" if any(key.startswith(middle_attention) for key in arrays) else "none",
        "z_channels": shape_of(arrays, "encoder.conv_out.weight", 4)[0],
        "in_channels": outer[1],
        "out_ch": shape_of(arrays, "decoder.conv_out.weight", 4)[0],
    }


def _named(found: list[re.Match[str]], level: int) -> str:
    """Beginning of the names of the first residual block of a level."""
    first = (match for match in found if (int(match[1]), match[3]) == (level, "0"))
    return next((match[0] for match in first if not match[2].startswith("att")), f"{level}.")


def shape_of(
    arrays: StateDict, key: str, axes: int, advice: str = "pass the state dict of the whole autoencoder"
) -> tuple[int, ...]:
    """Return the shape of an entry, which must exist and have so many axes."""
    shape = arrays[key].shape if key in arrays else None
    if shape is None or len(shape) != axes or not all(shape):
        raise UserError(
            f"arrays must have an entry {key!r} of {axes} axes, got {sorted(arrays)[:3] if shape is None else shape}; "
            f"{advice}."
        )
    return shape


def vqgan_model(
    arrays: StateDict, config: Mapping[str, Any], quantizer: Quantizer, name: Names = lambda name: name, **options: Any
) -> tuple[VQVAE, dict[str, Any]]:
    """Return the model of a config in taming's form, and its parameters.

    Args:
      arrays: The state dict of the autoencoder.
      config: ``ddconfig`` and ``embed_dim``.
      quantizer: The quantizer.
      name: The name of a parameter in the state dict, from its name in that of taming-transformers.
      **options: Further arguments of :func:`vqjax.models.registry.vqgan`.
    """
    arrays = {key: value for key, value in arrays.items() if not key.startswith(_OTHER_NETWORKS)}
    ddconfig = config["ddconfig"]
    for option, kind in _NOT_IMPORTED.items():
        if ddconfig.get(option, False):
            raise UserError(f"ddconfig.{option} must be False, got {ddconfig[option]!r}; {kind}.")
    model = vqgan(
        quantizer,
        channels=ddconfig["ch"],
        multipliers=tuple(ddconfig["ch_mult"]),
        num_res_blocks=ddconfig["num_res_blocks"],
        attention_resolutions=tuple(ddconfig["attn_resolutions"]),
        resolution=ddconfig["resolution"],
        middle_attention=ddconfig.get("attn_type", "vanilla") != "none",
        latent_dim=ddconfig["z_channels"],
        code_dim=config["embed_dim"],
        dropout=ddconfig.get("dropout") or None,
        image_channels=ddconfig.get("out_ch", 3),
        **options,
    )
    pixels = 2 ** len(ddconfig["ch_mult"])
    image = (pixels, pixels, ddconfig.get("in_channels", 3))
    advice = "pass the original's config, and the state dict of its autoencoder"
    return model, {"params": read_model(arrays, model, image, _entries(name), advice)}


def _entries(name: Names) -> Callable[[tuple[str, ...], int], Entry]:
    """Places in a state dict whose names are made from taming's."""

    def entry_of(path: tuple[str, ...], ndim: int) -> Entry:
        key = name(_taming_name(path))
        # Some have linear layers where taming has convolutions of one pixel.
        linear = re.search(r"(\.attentions\.|_quant_proj\.).*weight$", key) is not None
        return Entry(key, (3, 2, 0, 1) if ndim == 4 else tuple(range(ndim)), 2 if linear else None)

    return entry_of


_MIDDLE = ["block_1", "attn_1", "block_2"]
_MODULES = {
    "to_codes": "quant_conv",
    "from_codes": "post_quant_conv",
    "middle_block_0": "mid.block_1",
    "middle_attention": "mid.attn_1",
    "middle_block_1": "mid.block_2",
    "conv_1": "conv1",
    "conv_2": "conv2",
    "norm_1": "norm1",
    "norm_2": "norm2",
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}


def _taming_name(path: tuple[str, ...]) -> str:
    """Name of a parameter in the state dict of taming-transformers."""
    network, *modules, leaf = path
    if network == "quantizer":
        return "quantize.embedding.weight"
    names = [_MODULES.get(module, module) for module in modules]
    leaf = "bias" if leaf == "bias" else "weight"
    if names[0] in ("quant_conv", "post_quant_conv"):
        return f"{names[0]}.{leaf}"
    side = "down" if network == "encoder" else "up"
    names[0] = re.sub(r"^level_(\d+)_block_(\d+)$", rf"{side}.\1.block.\2", names[0])
    names[0] = re.sub(r"^level_(\d+)_attention_(\d+)$", rf"{side}.\1.attn.\2", names[0])
    names[0] = re.sub(r"^level_(\d+)_(down|up)sample$", rf"{side}.\1.\2sample", names[0])
    return ".".join([network, *names, leaf])


def _diffusers_names(last: int) -> Names:
    """Names in a state dict of diffusers, for levels from 0 to ``last``; the decoder's run from coarse to fine."""

    def name(taming_name: str) -> str:
        place = re.sub(r"^encoder\.down\.", "encoder.down_blocks.", taming_name)
        place = re.sub(r"^decoder\.up\.(\d+)", lambda level: f"decoder.up_blocks.{last - int(level[1])}", place)
        place = re.sub(r"\.mid\.block_(\d)", lambda part: f".mid_block.resnets.{int(part[1]) - 1}", place)
        place = place.replace(".mid.attn_1", ".mid_block.attentions.0").replace(".norm_out", ".conv_norm_out")
        place = re.sub(r"\.(down|up)sample\.", r".\1samplers.0.", place).replace(".nin_shortcut", ".conv_shortcut")
        place = place.replace(".block.", ".resnets.").replace(".attn.", ".attentions.")
        if ".attentions." in place:
            *place, module, leaf = place.split(".")
            return ".".join([*place, _DIFFUSERS_ATTENTION[module], leaf])
        return place

    return name


def _present_name(key: str) -> str:
    """Name that diffusers has given to a layer of attention since version 0.15."""
    if ".attentions." not in key:
        return key
    return re.sub(r"\.(query|key|value|proj_attn)\.", lambda old: f".{_OLD_DIFFUSERS_ATTENTION[old[1]]}.", key)
