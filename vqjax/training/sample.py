"""Images from a model of tokens."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Int32, Key, PyTree, UInt8
from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import load_networks
from vqjax.data import load_splits
from vqjax.data.tokens import TokenDataset
from vqjax.data.whole_images import SAMPLES
from vqjax.errors import UserError, did_you_mean
from vqjax.functional.tokens import TokenInfo
from vqjax.models.sampling import GuidanceSchedule, Order
from vqjax.reporting import comparison_sheet, save_png
from vqjax.reporting.pictures import to_rgb
from vqjax.reporting.progress import progress_of
from vqjax.runtime.files import atomic_file, new_file
from vqjax.runtime.paths import is_url, local_path
from vqjax.runtime.remote import local_copy, shown
from vqjax.tasks.second_stage import SecondStageTask
from vqjax.tasks.state import TrainState
from vqjax.training.build import build_task, example_batch
from vqjax.training.config import check_only_data, complete, override_all
from vqjax.training.devices import make_mesh, without_mesh
from vqjax.training.evaluate import restored_state

LABELS = "arr_1"
"""Name of the array of classes in a file of samples, as guided diffusion writes it."""

_SHOWN = 80


def sample_images(
    workdir: str | Path,
    *overrides: str,
    out: str | Path | None = None,
    num: int = 80,
    step: int | None = None,
    best: bool = False,
    tokenizer: str | None = None,
    classes: Sequence[str] = (),
    box: Sequence[int] | None = None,
    batch_size: int = 80,
    seed: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    num_steps: int | None = None,
    order: Order | None = None,
    schedule: str | None = None,
    choice_temperature: float | None = None,
) -> None:
    """Draw images from a model of tokens, and write them into a file that vqjax eval --fake=FILE measures.

    Args:
      workdir: Directory of the run that trained the model, or its URL.
      *overrides: Where the tokens of the run are now, as ``--config.data.name=DIR``.
      out: File of samples (``.npz``: images, classes and tokens), beside which a picture of the first ones is written;
        WORKDIR/samples.npz by default.
      num: Number of images.
      step: Step of the checkpoint; the newest by default.
      best: The checkpoint with the best value of the metric config.keep_best instead.
      tokenizer: Directory of the run that trained the tokenizer, if it has moved since the tokens were written.
      classes: Names or numbers of classes, with commas, of which the images are in turn; all by default, and ``none``
        for no class.
      box: FIRST_ROW,FIRST_COLUMN,ROWS,COLUMNS of the tokens that a masked transformer redraws in held-out images,
        whose other tokens stay: in the first ``num``, or in all in turn. The classes are those of the images unless
        others are given.
      batch_size: Images at once.
      seed: Of the random numbers.
      temperature: Below 1, likely tokens become likelier; 1 by default.
      top_k: Number of the likeliest tokens that are drawn from; all by default.
      top_p: Probability that the likeliest tokens which are drawn from add up to; 1 by default.
      guidance: Scale by which logits move away from those without a class; 1, which is none, by default.
      guidance_schedule: ``constant``, or ``linear``, from 1 to twice the excess.
      num_steps: Number of steps of a masked transformer; 12 by default.
      order: What a masked transformer keeps first: ``confidence``, ``halton`` or ``random``.
      schedule: Share of tokens that are masked by step: ``cosine``, ``arccos``, ``linear`` or ``square``; that of the
        training by default.
      choice_temperature: Noise on the confidence, which falls to 0 over the steps; 4.5 by default.

    Raises:
      UserError: There is no such model, its tokenizer is not found, or an argument is out of range.
    """
    for name, value in (("num", num), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"--{name} must be a positive integer, got {value}.")
    check_only_data(overrides, "sampling")
    options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
        "guidance_schedule": guidance_schedule,
        "num_steps": num_steps,
        "order": order,
        "schedule": schedule,
        "choice_temperature": choice_temperature,
    }
    options = {name: value for name, value in options.items() if value is not None}
    with without_mesh(), local_copy(workdir, "--workdir") as (directory, _):
        file = new_file(Path(directory) / "samples.npz" if out is None else out, "--out", ending=".npz")
        networks = load_networks(directory, step, best=best)
        config = override_all(complete(networks.info.config), overrides)
        if config.data.source != "tokens":
            raise UserError(
                f"--workdir must be the run of a model of tokens, got one of the task {config.task.name!r}."
            )
        splits = load_splits(config.data)
        _set_tokenizer(config, tokenizer, splits.train.info)
        task = build_task(config, splits.train)
        _check_options(task, config.task.name, options, box)
        state = restored_state(networks, task, example_batch(splits.train))
        known = None
        if box is not None:
            rows = [splits.eval[index % len(splits.eval)] for index in range(num)]
            known = np.stack([row["tokens"] for row in rows]).astype(np.int32)
        labels = _labels(classes, splits.eval, num, of_images=box is not None)
        sampler = _Sampler(task, state, None if box is None else _within(box, task.model.grid), options)
        tokens, images = sampler.draw(labels, known, batch_size=min(batch_size, num), seed=seed)
        _write(file, task, images, tokens, labels)
        picture = file.with_suffix(".png")
        if known is None:
            save_png(picture, task.pictures({"samples": images[:_SHOWN]})["samples"])
        else:
            before = sampler.decode(known[:_SHOWN])
            save_png(picture, comparison_sheet(before, images[:_SHOWN], captions=("tokens of an image", "redrawn")))
        print(f"samples: {shown(file)}: {len(images):,} images\npicture: {shown(picture)}", flush=True)


def _set_tokenizer(config: ConfigDict, given: str | None, tokens: TokenInfo) -> None:
    """Name the tokenizer in the config: the one given, that of the run, or what is noted with the tokens."""
    of_run = config.task.tokenizer or {}
    place = given or of_run.get("workdir") or (tokens.tokenizer or {}).get("workdir")
    if place is None:
        raise UserError("--tokenizer must be the directory of the run that made the tokens, got none; pass it.")
    if given is not None and not is_url(given) and not local_path(given, "--tokenizer").exists():
        raise UserError(f"--tokenizer must be the run that made the tokens, got {given!r}, which does not exist.")
    config.task.tokenizer = {"name": "run", "workdir": place, "step": of_run.get("step")}


def _check_options(task: SecondStageTask, name: str, options: Mapping[str, Any], box: Sequence[int] | None) -> None:
    """Refuse options that the task does not have, and guidance that the model was not trained for."""
    fields = inspect.signature(task.sample).parameters
    given = [*options, *(["box"] if box is not None else [])]
    for option in given:
        if ("known" if option == "box" else option) not in fields:
            raise UserError(f"--{option} must be left out for the task {name!r}, which samples without it.")
    guidance = options.get("guidance", 1)
    if guidance != 1 and not (task.model.num_classes and task.class_dropout):
        what = (
            "that always saw the class (config.task.class_dropout=0)" if task.model.num_classes else "without classes"
        )
        raise UserError(f"--guidance must be 1 for a model {what}, got {guidance}; leave it out.")


def _labels(classes: Sequence[str], dataset: TokenDataset, num: int, *, of_images: bool) -> Int32[np.ndarray, " {num}"]:
    """The class of each image: of the given ones in turn, by default all, or those of the images that are there."""
    names = list(dataset.class_names or ())
    if not classes and of_images and names:
        return np.array([dataset[index % len(dataset)]["label"] for index in range(num)], np.int32)
    if not classes:
        chosen = list(range(len(names))) or [0]
    else:
        choices = [*names, "none"]
        for text in classes:
            if text not in choices and not (text.isdecimal() and int(text) < len(names)):
                raise UserError(f"--classes={text} is unknown; {did_you_mean(text, choices)}")
        chosen = [choices.index(text) if text in choices else int(text) for text in classes]
    return np.resize(np.array(chosen, np.int32), num)


def _within(box: Sequence[int], grid: tuple[int, int]) -> Bool[np.ndarray, " positions"]:
    """Which tokens a box holds."""
    rows, columns = grid
    if len(box) != 4 or min(box) < 0 or box[0] + box[2] > rows or box[1] + box[3] > columns or 0 in box[2:]:
        raise UserError(
            f"--box must be FIRST_ROW,FIRST_COLUMN,ROWS,COLUMNS within {rows} x {columns} tokens, got {tuple(box)}."
        )
    inside = np.zeros(grid, bool)
    inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return inside.reshape(-1)


class _Sampler:
    """The images of a model of tokens and its tokenizer, which all devices share."""

    def __init__(
        self,
        task: SecondStageTask,
        state: TrainState,
        inside: Bool[np.ndarray, " positions"] | None,
        options: Mapping[str, Any],
    ) -> None:
        mesh = make_mesh(None, {})
        self._rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._devices = mesh.size
        self._networks = jax.device_put(task.networks(state), whole)

        @jax.jit
        def decode(networks: PyTree, grids: Int[Array, " batch *shape"]) -> UInt8[Array, "batch height width c"]:
            return task.decoded(networks, grids)

        @jax.jit
        def draw(
            networks: PyTree,
            key: Key[Array, ""],
            classes: Int[Array, " batch"],
            known: Int[Array, " batch *shape"] | None,
        ) -> tuple[Int[Array, " batch *shape"], UInt8[Array, "batch height width c"]]:
            of_images = {}
            if known is not None:
                tokens = task.tokens_of({"tokens": known})
                of_images = {"known": (tokens, jnp.broadcast_to(jnp.asarray(inside), tokens.shape[:2]))}
            grids = task.grids(task.sample(networks, key, classes, **of_images, **options))
            return grids, decode(networks, grids)

        self._decode, self._draw = decode, draw

    def decode(self, tokens: Int[np.ndarray, " images *shape"]) -> UInt8[np.ndarray, "images height width channels"]:
        """Return the images of tokens."""
        return np.asarray(self._decode(self._networks, jnp.asarray(tokens)))

    def draw(
        self,
        labels: Int32[np.ndarray, " images"],
        known: Int[np.ndarray, " images *shape"] | None,
        *,
        batch_size: int,
        seed: int,
    ) -> tuple[Int[np.ndarray, " images *shape"], UInt8[np.ndarray, "images height width channels"]]:
        """Return tokens and images of classes, of which a batch depends on its number alone."""
        # Rows are added for the devices, and taken away again, so that images do not depend on their number.
        size, show, drawn = batch_size + -batch_size % self._devices, progress_of(len(labels), "drew"), []
        for number, start in enumerate(range(0, len(labels), batch_size)):
            rows = np.arange(start, start + size) % len(labels)
            given = jax.device_put((labels[rows], None if known is None else known[rows]), self._rows)
            key = jax.random.fold_in(jax.random.key(seed), number)
            drawn.append([part[:batch_size] for part in jax.device_get(self._draw(self._networks, key, *given))])
            show(min(start + batch_size, len(labels)))
        tokens, images = (np.concatenate(parts)[: len(labels)] for parts in zip(*drawn, strict=True))
        return tokens, images


def _write(
    file: Path,
    task: SecondStageTask,
    images: UInt8[np.ndarray, "images height width channels"],
    tokens: Int[np.ndarray, " images *shape"],
    labels: Int32[np.ndarray, " images"],
) -> None:
    """Write a file of samples, whose images have three channels for those who read it."""
    classes = {LABELS: labels} if task.model.num_classes else {}
    arrays = {SAMPLES: to_rgb(images), "tokens": tokens, **classes}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as stream:
        np.savez_compressed(stream, **arrays)
