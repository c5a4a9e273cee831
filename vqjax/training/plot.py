"""Pictures of a run: `vqjax plot codebook`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vqjax.checkpointing.checkpoints import SavedNetworks, load_networks
from vqjax.checkpointing.discovery import checkpoint_steps
from vqjax.data import evaluation_batches, load_splits, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.models.classifiers import Classifier
from vqjax.models.registry import TRANSFORMERS, build_model
from vqjax.models.tokenizer import NETWORK, quantizer_variables
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.grid import GridQuantizer
from vqjax.quantizers.vector import VectorQuantizer
from vqjax.reporting.codebook_figure import Snapshot, codebook_figure
from vqjax.reporting.figures import save_figure
from vqjax.runtime.paths import local_path
from vqjax.runtime.workdir import usable_workdir
from vqjax.tasks.classification import CLASSIFIER
from vqjax.training.config import complete

_MOST_PANELS = 4
_MOST_VECTORS = 2**14


def plot_run(
    what: Literal["codebook"], /, *, workdir: str | Path, output: str | Path | None = None, images: int = 256
) -> None:
    """Draw the codebook of a run beside the vectors that it quantizes, at up to four of its checkpoints.

    A picture for each quantizer: vectors, codes and codes in use on the same two axes at each step, and histograms of
    the use of codes, of lengths, and of the angles between vectors and codes at the last one. A run keeps its last two
    checkpoints; config.keep_every keeps more of them.

    Args:
      what: ``codebook``.
      workdir: Directory of the run.
      output: Directory of the pictures; ``plots`` in that of the run by default.
      images: Held-out images whose vectors are drawn.

    Raises:
      UserError: There is no checkpoint, or a quantizer has no single codebook.
    """
    del what  # there is one picture yet
    if images < 1:
        raise UserError(f"--images must be at least 1, got {images}.")
    directory = usable_workdir(local_path(workdir, "--workdir"))
    steps = checkpoint_steps(directory)
    spread = np.unique(np.linspace(0, len(steps) - 1, _MOST_PANELS).round().astype(int)) if steps else []
    newest = load_networks(directory)
    snapshots: dict[str, list[Snapshot]] = {}
    for step in sorted({steps[i] for i in spread if steps[i] < newest.info.step} | {newest.info.step}):
        print(f"step {step}", file=sys.stderr, flush=True)
        networks = newest if step == newest.info.step else load_networks(directory, step)
        for place, snapshot in _snapshots(networks, images):
            snapshots.setdefault(place, []).append(snapshot)
    plots = directory / "plots" if output is None else local_path(output, "--output")
    plots.mkdir(parents=True, exist_ok=True)
    for place, of_place in snapshots.items():
        file = plots / (f"codebook_{place}.png" if place else "codebook.png")
        save_figure(file, codebook_figure(of_place, " ".join([directory.name, place]).strip()))
        print(f"picture: {file}", flush=True)


def _snapshots(networks: SavedNetworks, images: int) -> Iterator[tuple[str, Snapshot]]:
    """The vectors and codes of each quantizer by its place, which is empty for that of a tokenizer."""
    config = complete(networks.info.config)
    if config.model.name in TRANSFORMERS:
        raise UserError("--workdir must be that of a run with a quantizer, got one of a model of tokens.")
    model = build_model(config.model, config.quantizer)
    dataset = load_splits(config.data).eval
    # The frames of clips count as images.
    frames = config.data.get("frames", 1)
    batch = next(evaluation_batches(dataset, min(max(1, images // frames), len(dataset))))
    batch = pixels_of(batch)[batch["valid"]]
    network = CLASSIFIER if isinstance(model, Classifier) else NETWORK
    params = (networks.ema_params or networks.params)[network]
    variables = {"params": params, **networks.variables[network]}
    pixels = to_model_range(jnp.asarray(batch))
    if isinstance(model, Classifier):
        if not model.quantizers:
            raise UserError("--workdir must be that of a run with a quantizer, got a classifier without any.")
        latents = jax.jit(lambda v, x: model.apply(v, x, train=False).latents)(variables, pixels)
        parts = {place: model.quantizer_at(place, variables) for place in model.quantizers}
    else:
        latents = {"": jax.jit(lambda v, x: model.apply(v, x, train=False, method="latents"))(variables, pixels)}
        parts = {"": (model.quantizer.clone(parent=None, name=None), quantizer_variables(variables))}
    for place, (quantizer, own) in parts.items():
        vectors = latents[place].reshape(-1, latents[place].shape[-1])[:_MOST_VECTORS]
        yield place, _snapshot(networks.info.step, quantizer, own, vectors)


def _snapshot(step: int, quantizer: nn.Module, variables: Any, vectors: jax.Array) -> Snapshot:
    """Vectors, and all codes in the space of the vectors."""
    if not isinstance(quantizer, Quantizer) or quantizer.index_shape != ():
        name = type(quantizer).__name__
        raise UserError(f"vqjax plot codebook needs a quantizer with one index for each vector, got {name}.")
    indices = quantizer.apply(variables, vectors, method="encode")
    if isinstance(quantizer, VectorQuantizer | GridQuantizer):
        # As they are compared with the codes: projected, normalized and bounded.
        vectors = quantizer.apply(variables, vectors, method="bypass")
    codes = quantizer.apply(variables, jnp.arange(quantizer.num_codes), method="decode")
    if codes.shape[-1] != vectors.shape[-1]:
        raise UserError(
            f"vqjax plot codebook needs codes in the space of the vectors, got {type(quantizer).__name__}, which maps "
            f"{vectors.shape[-1]} features to {codes.shape[-1]}."
        )
    return Snapshot(step, *(np.asarray(x, np.float32) for x in (vectors, codes)), np.asarray(indices))  # pyright: ignore[reportCallIssue]
