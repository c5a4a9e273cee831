"""Directory of a tokenizer to share: weights as safetensors, and what they are as JSON; nothing in it is executed."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors.flax import load_file
from safetensors.numpy import save

from vqjax.errors import UserError, one_line
from vqjax.models.registry import CLASSIFIERS, TRANSFORMERS, build_model, describe
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import is_unicode, local_path

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
"""Files of the directory; the third is for people."""

_FORMAT = "vqjax tokenizer 1"
_KINDS = {dict: "a group", int: "a number", str: "a text"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_CARD = """\
---
library_name: vqjax
tags: [vector-quantization, image-tokenizer, jax, flax]
---

{card}

```python
import vqjax

tokenizer = vqjax.Tokenizer.from_pretrained("{name}")
indices = tokenizer.encode(images)  # of uint8 images, or floats in [-1, 1]
images = tokenizer.decode(indices)  # in [-1, 1]
```
"""


def write_pretrained(
    directory: str | Path,
    model: nn.Module,
    variables: PyTree,
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    card: str,
    name: str | None,
) -> Path:
    """Write a model and its variables into a directory.

    Args:
      directory: The directory, created if it does not exist; files of the same names are replaced.
      model: An autoencoder that a config can hold.
      variables: Its variables by collection.
      config: A config that may have made it.
      facts: What else the config says, such as the training step.
      card: Text of the card, in Markdown.
      name: What the card loads; the name of the directory by default.

    Returns:
      The directory.

    Raises:
      UserError: No config holds such a model, or the directory is elsewhere.
    """
    directory = local_path(directory, "directory")
    if not is_unicode(str(directory)) or (directory.exists() and not directory.is_dir()):
        raise UserError(f"directory must be a directory with a name in UTF-8, got {str(directory)!r}; use another one.")
    written = {"format": _FORMAT, "vqjax": version("vqjax"), **facts, **describe(model, config)}
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flatten_dict(variables, sep="/").items()}
    for file, content in (
        (WEIGHTS, save(arrays)),
        (CONFIG, (strict_json(written, indent=2) + "\n").encode()),
        (CARD, _CARD.format(card=card.strip(), name=name or directory.resolve().name).encode()),
    ):
        with atomic_file(directory / file) as opened:
            opened.write(content)
    return directory


def read_pretrained(directory: Path) -> tuple[nn.Module, PyTree, dict[str, Any]]:
    """Read what :func:`write_pretrained` has written.

    Args:
      directory: The directory.

    Returns:
      The model, its variables, and the contents of the config.

    Raises:
      UserError: A file is missing or damaged, or of another format.
    """
    try:
        config = json.loads((directory / CONFIG).read_bytes())
        arrays = load_file(directory / WEIGHTS)
    except Exception as error:  # of the file system, JSON, safetensors, and of dtypes that NumPy lacks
        raise UserError(
            f"{directory} must hold {CONFIG} and {WEIGHTS} of Tokenizer.save_pretrained, but one cannot be read "
            f"({one_line(error)}); load or save them again."
        ) from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != _FORMAT:
        raise UserError(
            f"{directory / CONFIG} must be of the format {_FORMAT!r}, got {found!r}; vqjax import reads files of other "
            "libraries."
        )
    wanted = {"model": dict, "quantizer": dict, "step": int, "checksum": str}
    for name, kind in wanted.items():
        if not isinstance(config.get(name), kind):
            raise UserError(
                f"{directory / CONFIG} must have {name!r}, {_KINDS[kind]}, got {config.get(name)!r}; save it again."
            )
    if (kind := config["model"].get("name")) in (*CLASSIFIERS, *TRANSFORMERS):
        raise UserError(f"{directory / CONFIG} must be of an autoencoder, got the model {kind!r}; save another one.")
    try:
        model = build_model(config["model"], config["quantizer"])
        variables = unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep="/")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{directory} must hold what Tokenizer.save_pretrained has written, but its contents do not go together "
            f"({one_line(error)}); load or save them again."
        ) from error
    return model, variables, config


def located(name: str | Path, revision: str | None) -> Path:
    """Return the directory of a tokenizer, which is fetched from the hub if there is none of that name.

    Args:
      name: A directory, or ``OWNER/NAME`` on the hub.
      revision: Branch, tag or commit on the hub.

    Raises:
      UserError: There is neither, or the hub cannot be asked.
    """
    directory = local_path(name, "name")
    if directory.is_dir() and revision is not None:
        raise UserError(f"revision must be None for a directory, got {revision!r}, which the hub alone has.")
    if directory.is_dir():
        return directory
    if not _HUB_NAME.fullmatch(str(name)):
        raise UserError(f"name must be a directory, or OWNER/NAME on the hub, got {str(name)!r}, which is neither.")
    if Path(name).parent.is_dir():
        raise UserError(f"name must be a directory, got {str(name)!r}, which is not in {str(Path(name).parent)!r}.")
    hub = _hub_library()
    try:
        files = [hub.hf_hub_download(str(name), file, revision=revision) for file in (CONFIG, WEIGHTS)]
    except Exception as error:  # of the hub, of files, and of the network
        raise UserError(
            f"{str(name)!r} is not a directory, and cannot be loaded from the hub ({one_line(error)}); check the name "
            "and the connection, and log in with `hf auth login` for one that is not public."
        ) from error
    return Path(files[0]).parent


def upload(directory: Path, name: str, *, private: bool) -> str:
    """Upload a directory to the hub, and return its address.

    Args:
      directory: What :func:`write_pretrained` has written.
      name: ``OWNER/NAME``; created if it does not exist.
      private: Whether a new one is private.

    Raises:
      UserError: The name cannot be used, or the hub refuses.
    """
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"name must be OWNER/NAME on the hub, got {name!r}.")
    hub = _hub_library()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=directory, allow_patterns=[CONFIG, WEIGHTS, CARD])
    except Exception as error:  # of the hub, of files, and of the network
        raise UserError(
            f"{name!r} cannot be written on the hub ({one_line(error)}); log in with `hf auth login`."
        ) from error
    return str(address)


def _hub_library() -> Any:
    """Import huggingface_hub, which is an extra.

    Raises:
      UserError: It is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError('The hub needs huggingface_hub, which is not installed: pip install "vqjax[hub]".') from error
    return huggingface_hub


def export_program(
    model: nn.Module, variables: PyTree, method: str, example: jax.ShapeDtypeStruct, platforms: tuple[str, ...]
) -> bytes:
    """Serialize a method with its variables as a program of ``jax.export``, for batches of any size.

    Args:
      model: The model.
      variables: Its variables, which become constants of the program.
      method: Name of the method.
      example: Shape and dtype of one element of a batch.
      platforms: Platforms that the program is for.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    program = jax.jit(lambda x: model.apply(variables, x, method=method))
    shape = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    return bytes(jax.export.export(program, platforms=platforms)(shape).serialize())
