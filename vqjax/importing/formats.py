"""The formats of published tokenizers, and which of them a state dict has."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from vqjax.errors import UserError
from vqjax.importing.magvit import maskgit, open_magvit2
from vqjax.importing.rotation_trick import rotation_trick
from vqjax.importing.state_dict import StateDict
from vqjax.importing.vit_vqgan import enhancing_transformers
from vqjax.importing.vqgan import diffusers, ibq, llamagen, taming
from vqjax.models.vqvae import VQVAE, PixelsName


class Format(NamedTuple):
    """A format of published tokenizers.

    Attributes:
      read: Its importer.
      mark: Beginning of an entry that only this format has; None if its entries do not tell it from another one.
      pixels: The pixels that its importer's model takes for images.
    """

    read: Callable[..., tuple[VQVAE, dict[str, Any]]]
    mark: str | None
    pixels: PixelsName = "symmetric"


FORMATS = {
    "open_magvit2": Format(open_magvit2, r"(first_stage_model\.)?decoder\.adaptive\.0\."),
    "maskgit": Format(maskgit, r"(params\.)?encoder\.ResBlock_0\."),
    "rotation_trick": Format(rotation_trick, r"(module\.)?vq\._codebook\.embed$"),
    "diffusers": Format(diffusers, r"encoder\.down_blocks\.0\."),
    "llamagen": Format(llamagen, r"encoder\.conv_blocks\.0\."),
    "enhancing_transformers": Format(enhancing_transformers, r"encoder\.to_patch_embedding\.", "unit"),
    "taming": Format(taming, r"(first_stage_model\.)?encoder\.down\.0\.block\."),
    "ibq": Format(ibq, None),
}
"""The formats by name, in the order in which they are looked for."""

_OTHERS = {
    r"(first_stage_model\.)?quant_conv\.weight$": "a variational autoencoder of latent diffusion, which lacks codes",
    r"encoder\.down_blocks\.0\.": "an autoencoder of diffusers that lacks codes",
    r"(.*\.)?_codebook\.embed$": "a quantizer of vector-quantize-pytorch, which lacks an encoder and a decoder; use "
    "vqjax.importing.vector_quantize_pytorch",
    r"(loss\.)?discriminator\.": "a discriminator, which lacks an autoencoder",
    r"(net\.slice1|lin0\.model|features\.0)\.": "a network of a perceptual loss, which lacks an autoencoder",
    r"(.*\.)?(self_attn|attention|attn)\.": "a transformer, which lacks an autoencoder of images",
}
_CODES = {"taming": r"(first_stage_model\.)?(quantize\.|colorize)", "diffusers": r"quantize\."}
# Of all published models of this form, those of IBQ alone have so many in a level.
_BLOCKS_OF_IBQ = r"(first_stage_model\.)?encoder\.down\.0\.block\.3\."


def recognize(arrays: StateDict) -> str:
    """Return the format of a state dict, by its entries.

    Args:
      arrays: Arrays by name.

    Returns:
      A name in :data:`FORMATS`.

    Raises:
      UserError: It is of none of them, or could be of two; the message says what it looks like and what it lacks.

    Example:
      >>> import numpy as np
      >>> recognize({"encoder.conv_blocks.0.res.0.norm1.weight": np.ones(1)})
      'llamagen'
    """

    def has(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in arrays)

    for name, kind in FORMATS.items():
        if kind.mark is None or not has(kind.mark) or (name in _CODES and not has(_CODES[name])):
            continue
        if name == "taming" and has(_BLOCKS_OF_IBQ):
            raise UserError(
                "--format must be taming or ibq for this file, whose entries are those of both, which choose "
                "codes differently; the published models with four residual blocks in a level are ibq."
            )
        return name
    looks = next((other for pattern, other in _OTHERS.items() if has(pattern)), None)
    names = ", ".join(FORMATS)
    if looks is None:
        looks = f"none of these, with the entries {sorted(arrays)[:3]}; it lacks an encoder that one of them has"
    raise UserError(f"the file must hold a tokenizer of one of the formats {names}, but looks like {looks}.")
