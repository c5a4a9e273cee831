"""Runs that start from a tokenizer that somebody else has published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import yaml
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import Checkpoints
from vqjax.checkpointing.discovery import find_checkpoint
from vqjax.data import fingerprint, load_splits
from vqjax.data.sources import with_absolute_path
from vqjax.errors import UserError, one_line
from vqjax.importing.formats import FORMATS, recognize
from vqjax.importing.state_dict import read_state_dict
from vqjax.models.registry import describe
from vqjax.models.tokenizer import NETWORK
from vqjax.models.vqvae import VQVAE
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import local_path
from vqjax.runtime.remote import local_copy
from vqjax.runtime.workdir import exclusive, usable_workdir
from vqjax.tasks.state import TrainState
from vqjax.training.build import build_task, check_fits, example_batch
from vqjax.training.config import base_config, override_all, validate
from vqjax.training.dispatch import empty_log_sums, make_step
from vqjax.training.loop import write_config

_IMAGE_SIZE = 256  # of all published tokenizers that do not say it
_ORIGIN_FILE = "origin.json"
_NUM_STEPS, _BATCH_SIZE, _LEARNING_RATE = 10_000, 16, 1e-5


def import_checkpoint(
    file: str | Path,
    /,
    *overrides: str,
    workdir: str | Path,
    format: Literal[*FORMATS] | None = None,
    config: str | None = None,
) -> None:
    """Make a run of a published tokenizer, which eval, train and vqjax.load_tokenizer go on from.

    The file is a checkpoint of its authors (.ckpt, .pt, .pth, .bin or .safetensors). Nothing in it is executed. The run
    evaluates and trains on the photographs that come with the package, as a VQ-VAE; --config.FIELD=VALUE and
    --config.GROUP.FIELD=VALUE say otherwise, for example --config.data.source=image_folder.

    Args:
      file: The checkpoint.
      *overrides: Changes of the config of the run, as ``--config.field=value``.
      workdir: Directory of the run, or its URL; it must not hold a run yet.
      format: Format of the file; recognized by its entries by default.
      config: Config that was published with it (YAML or JSON); without it, sizes are read from the shapes.

    Raises:
      UserError: The file holds no tokenizer that can be imported, or the directory a run.
    """
    with local_copy(workdir, "--workdir") as (directory, _):
        name = _import(file, overrides, usable_workdir(directory), format, config)
    print(f"imported: {file}, of the format {name}")
    print(f"next: vqjax eval --workdir={workdir}, vqjax train --workdir={workdir}", flush=True)


def _import(file: str | Path, overrides: tuple[str, ...], workdir: Path, format: str | None, config: str | None) -> str:
    """Write the run into a local directory, and return the format."""
    _check_is_new(workdir)
    arrays = read_state_dict(file)
    name = format or recognize(arrays)
    model, variables = _read(arrays, name, config)
    run = _config(model, overrides)
    splits = load_splits(run.data)
    task = build_task(run, splits.train)
    batch = example_batch(splits.train)
    key = jax.random.key(run.seed)
    _check_shapes(check_fits(task, key, batch), variables)
    state = task.init(key, batch)
    variables = jax.tree.map(lambda like, array: jnp.asarray(array, like.dtype), state.trained(NETWORK), variables)
    state = state.with_network(NETWORK, variables)
    batches = {
        name: jax.ShapeDtypeStruct((run.batch_size, *array.shape[1:]), array.dtype) for name, array in batch.items()
    }
    state = state.replace(log_sums=empty_log_sums(make_step(task, run.seed), state, batches))
    with exclusive(workdir):
        _check_is_new(workdir)
        checkpoints = Checkpoints(
            workdir,
            run.to_dict(),
            fingerprint(splits.train),
            eval_images=fingerprint(splits.eval),
            keep=run.keep_checkpoints,
        )
        try:
            checkpoints.save(0, state.saved())
        finally:
            checkpoints.close()
        write_config(workdir, run)
        with atomic_file(workdir / _ORIGIN_FILE) as opened:
            opened.write(strict_json({"file": Path(file).name, "format": name}).encode())
    return name


def import_origin(workdir: Path) -> str | None:
    """Say what a run was imported from; None for one that was not.

    Args:
      workdir: Directory of the run.
    """
    try:
        origin = json.loads((workdir / _ORIGIN_FILE).read_bytes())
        return f"`{origin['file']}`, of the format {origin['format']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_is_new(workdir: Path) -> None:
    if find_checkpoint(workdir) is not None:
        raise UserError(
            f"--workdir must be a directory without a run, got {workdir}, which holds one; use another --workdir."
        )


def _read(arrays: Mapping[str, Any], name: str, config: str | None) -> tuple[VQVAE, dict[str, PyTree]]:
    """The model for images in [-1, 1], and its variables."""
    original = None if config is None else _published(local_path(config, "--config"))
    model, variables = FORMATS[name].read(arrays, original)
    return (model if FORMATS[name].pixels == "symmetric" else model.clone(pixels=FORMATS[name].pixels)), variables


def _published(path: Path) -> Mapping[str, Any]:
    """The contents of a YAML file, of which JSON is a part."""
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--config={path} must be a YAML or JSON file, but cannot be read ({one_line(error)})."
        ) from error
    if not isinstance(contents, Mapping):
        raise UserError(f"--config={path} must hold parameters by name, got {type(contents).__name__}.")
    return contents


def _config(model: VQVAE, overrides: tuple[str, ...]) -> ConfigDict:
    """The config of the run."""
    config = base_config()
    config.num_steps, config.batch_size = _NUM_STEPS, _BATCH_SIZE
    config.data = {"source": "photos", "image_size": _IMAGE_SIZE, "channels": model.decoder.image_channels}
    config.optimizer = {"name": "adam", "learning_rate": _LEARNING_RATE}
    groups = describe(model)
    config.model, config.quantizer = groups["model"], groups["quantizer"]
    config = validate(override_all(config, overrides))
    config.data = with_absolute_path(config.data)
    return config


def _check_shapes(state: TrainState, variables: dict[str, PyTree]) -> None:
    """Refuse variables that are not those of the tokenizer in a state."""
    trees = (state.trained(NETWORK), variables)
    expected, given = (jax.tree.map(lambda array: array.shape, tree) for tree in trees)
    if expected != given:
        raise UserError(
            "config.model and config.quantizer must keep the parameters of the imported tokenizer; change only what "
            "has none of its own, such as --config.quantizer.estimator."
        )
