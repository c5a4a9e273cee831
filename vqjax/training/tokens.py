"""The tokens of a data set, written once for all runs over them."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, UInt8, UInt32

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import ImageDataset, UnreadableImage, augment, fingerprint, load_splits, to_model_range
from vqjax.data.dataset import Example, is_random, pixels_of
from vqjax.data.reading import READING_THREADS, UnreadableReport, example_spec, read_many
from vqjax.data.tokens import (
    TokenDataset,
    described_shards,
    forget_shards,
    noted_checksum,
    read_index,
    write_index,
    write_shard,
)
from vqjax.errors import UserError
from vqjax.models.tokenizer import Tokenizer
from vqjax.quantizers.multi_scale import MultiScaleVQ
from vqjax.reporting.progress import progress_of
from vqjax.runtime.files import file_checksum
from vqjax.runtime.paths import is_url, local_path
from vqjax.runtime.processes import (
    assert_same_on_all_processes,
    is_main_process,
    join_if_asked,
    main_process_first,
)
from vqjax.training.config import check_only_data, complete, override_all
from vqjax.training.devices import make_mesh, without_mesh

_SEED = 0
_RANDOM = ("crop_padding", "random_crop", "random_start")


def write_tokens(
    workdir: str | Path,
    *overrides: str,
    out: str | Path,
    step: int | None = None,
    best: bool = False,
    flip: bool = False,
    crops: int = 1,
    shard_size: int = 10_000,
    batch_size: int | None = None,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Write the tokens of all images of a run's data, for --config.data.source=tokens --config.data.name=OUT.

    --config.data.FIELD=VALUE takes other images, or these if they have moved. The same command again continues where it
    was interrupted.

    Args:
      workdir: Directory of the run that trained the tokenizer, or its URL.
      *overrides: Changes of the data, as ``--config.data.field=value``.
      out: Directory for the tokens: shards of NumPy records, and tokens.json, which lists them.
      step: Step of the checkpoint; the newest by default.
      best: The checkpoint with the best value of the metric config.keep_best instead.
      flip: Also the mirror images of the training images.
      crops: Versions of each training image: as it is, and random crops as the run's training has them.
      shard_size: Images of a shard.
      batch_size: Images at once; the training batch by default.
      distributed: Join the other processes that Slurm, Open MPI or Kubernetes has started (docs/long-runs.md).
      coordinator_address: Elsewhere, to join others: HOST:PORT of process 0.
      num_processes: Elsewhere: the number of processes.
      process_id: Elsewhere: the number of this process, from 0.

    Raises:
      UserError: There is no such tokenizer, no data, or the directory holds other tokens.
    """
    for name, value in (("crops", crops), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be a positive integer, got {value}.")
    check_only_data(overrides, "the writing of tokens")
    join_if_asked(distributed, coordinator_address, num_processes, process_id)
    directory = local_path(out, "--out")
    with without_mesh():
        tokenizer = load_tokenizer(workdir, step, best=best)
        config = override_all(complete(tokenizer.config), overrides)
        splits = load_splits(config.data)
        if isinstance(splits.train, TokenDataset):
            raise UserError("config.data.source must be one of images, got 'tokens'; pass that of the tokenizer's run.")
        random = is_random(splits.train) or config.data.crop_padding is not None
        if crops > 1 and not random:
            raise UserError(
                f"--crops must be 1 for images that the run does not crop at random, got {crops}; set "
                "--config.data.crop_padding=PIXELS, or config.data.random_crop of a folder."
            )
        encode = _Encoder(tokenizer, config.data.crop_padding, batch_size or config.batch_size)
        shape, quantizer = encode.shape(splits.train), tokenizer.model.quantizer
        *_, code_dim = _map_shape(tokenizer, shape)
        index = {
            "num_codes": list(quantizer.codebook_sizes),
            "shape": shape,
            "grid": positions_of(tokenizer, shape),
            "scales": [list(scale) for scale in quantizer.shapes] if isinstance(quantizer, MultiScaleVQ) else None,
            "code_dim": code_dim,
            "tokenizer": tokenizer_context(tokenizer, workdir),
            "class_names": None if splits.train.class_names is None else list(splits.train.class_names),
            "images": {split: [dataset.name, fingerprint(dataset)] for split, dataset in splits._asdict().items()},
            "flip": flip,
            "crops": crops,
            "shard_size": shard_size,
            "random": {name: config.data.get(name) for name in _RANDOM} if crops > 1 else None,
        }
        before = _start(directory, index)
        versions = [_Version(crop, mirrored) for mirrored in range(1 + flip) for crop in range(crops)]
        parts = list(_parts("train", splits.train, versions, shard_size))
        parts += _parts("eval", splits.eval, versions[:1], shard_size)
        _write_parts(directory, parts, before, encode)
        # Not before all of them are there.
        files = [part.file for part in parts]
        assert_same_on_all_processes("list of shards", files, "Start all of them with the same arguments.")
        with main_process_first("complete tokens"):
            if is_main_process():
                shards = {
                    split: list(described_shards([directory / part.file for part in parts if part.split == split]))
                    for split in splits._fields
                }
                write_index(directory, index | {"complete": True, "splits": shards})
                forget_shards(directory)
                train, held_out = (sum(shard["rows"] for shard in shards[split]) for split in splits._fields)
                print(f"tokens:  {directory}: {train:,} examples to train on, {held_out:,} held out", flush=True)


def tokenizer_context(tokenizer: Tokenizer, workdir: str | Path) -> dict[str, Any]:
    """Return what is noted with tokens of the tokenizer that made them.

    Args:
      tokenizer: The tokenizer.
      workdir: Directory of its run, or its URL.
    """
    return {
        "checksum": tokenizer.checksum,
        "workdir": str(workdir) if is_url(workdir) else str(local_path(workdir).absolute()),
        "step": tokenizer.step,
    }


def positions_of(tokenizer: Tokenizer, shape: Sequence[int]) -> list[int] | None:
    """Return the shape of the positions of an image's tokens; None for those of a multi-scale quantizer.

    Args:
      tokenizer: The tokenizer.
      shape: Shape of an image's tokens, which may have axes behind those of its positions.
    """
    *grid, _ = _map_shape(tokenizer, shape)
    return grid if grid == list(shape[: len(grid)]) else None


def _map_shape(tokenizer: Tokenizer, shape: Sequence[int]) -> list[int]:
    """The shape of the map that the tokens of an image stand for, with its features."""

    def decode(variables: PyTree, tokens: Int[Array, " batch *tokens"]) -> Array:
        return tokenizer.model.apply(variables, tokens, method=lambda model, tokens: model.quantizer.decode(tokens))

    return list(jax.eval_shape(decode, tokenizer.variables, jax.ShapeDtypeStruct((1, *shape), jnp.int32)).shape[1:])


class _Version(NamedTuple):
    """Version of an image: the number of its crop, of which 0 is none, and whether it is mirrored."""

    crop: int
    mirrored: int


class _Part(NamedTuple):
    """What a shard holds: one version of consecutive images."""

    split: str
    file: str
    dataset: ImageDataset
    version: _Version
    images: range


def _parts(split: str, dataset: ImageDataset, versions: Sequence[_Version], shard_size: int) -> Iterator[_Part]:
    starts = range(0, len(dataset), shard_size)
    for number, (version, start) in enumerate(itertools.product(versions, starts)):
        images = range(start, min(start + shard_size, len(dataset)))
        yield _Part(split, f"{split}-{number:05d}.npy", dataset, version, images)


def _start(directory: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Make the directory, and return its index; refuse other tokens."""
    with main_process_first("start of tokens"):
        found = read_index(directory)
        if found is None and is_main_process():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                # Shards without an index may be those of any tokenizer.
                forget_shards(directory)
                write_index(directory, index | {"complete": False, "splits": {}})
            except OSError as error:
                raise UserError(
                    f"--out must be a directory to write into, got {str(directory)!r} ({error.strerror})."
                ) from error
    found = found or read_index(directory)
    for name, value in index.items():
        # Earlier releases did not note these.
        there = value if name in ("random", "grid") and found.get(name) is None else found.get(name)
        if name == "tokenizer" and isinstance(there, dict):
            # The same one may have moved.
            there, value = there.get("checksum"), value["checksum"]
        if there != value:
            raise UserError(
                f"--out must be a new directory, or hold the same tokens, got {str(directory)!r}, whose `{name}` is "
                f"{there!r:.100} instead of {value!r:.100}; use another one."
            )
    return found


def _write_parts(directory: Path, parts: Sequence[_Part], before: dict[str, Any], encode: "_Encoder") -> None:
    """Write the shards that are not there yet, of several processes each its own."""
    listed = {shard["file"]: shard["sha256"] for shards in before["splits"].values() for shard in shards}

    def is_there(part: _Part) -> bool:
        file = directory / part.file
        return file.is_file() and file_checksum(file) in (listed.get(part.file), noted_checksum(file))

    mine = [part for part in parts[jax.process_index() :: jax.process_count()] if not is_there(part)]
    reports = {part.split: UnreadableReport(part.dataset.name) for part in mine}
    show, done = progress_of(sum(len(part.images) for part in mine), "encoded"), 0
    for part in mine:
        tokens, labels = [], []
        for examples in _batches(part, encode.batch_size, reports[part.split]):
            tokens.append(encode(examples, part.version.mirrored))
            labels += [example["label"] for example in examples if "label" in example]
            done += len(examples)
            if is_main_process():
                show(done)
        if not tokens:
            raise UserError(f"{part.dataset.name}: no image in {part.images} can be read; raise --shard_size.")
        write_shard(
            directory / part.file, np.concatenate(tokens), np.array(labels) if labels else None, encode.most_codes
        )
    for split, report in reports.items():
        report.summarize(sum(len(part.images) for part in mine if part.split == split))


def _batches(part: _Part, batch_size: int, report: UnreadableReport) -> Iterator[list[Example]]:
    """Read the readable images of a part ahead, in order; each with the key of its crop."""
    dataset, crop = part.dataset, part.version.crop

    def read(start: int) -> list[tuple[int, Example | UnreadableImage]]:
        indices = range(start, min(start + batch_size, part.images.stop))
        generators = None
        if crop and is_random(dataset):
            generators = [np.random.default_rng((_SEED, crop, index)) for index in indices]
        return list(zip(indices, read_many(dataset, indices, generators), strict=True))

    ahead = grain.ReadOptions(READING_THREADS, prefetch_buffer_size=READING_THREADS)
    starts = grain.MapDataset.range(part.images.start, part.images.stop, batch_size)
    for examples in starts.map(read).to_iter_dataset(ahead):
        readable = []
        for index, example in examples:
            if isinstance(example, UnreadableImage):
                report.add(example)
            else:
                readable.append(example | {"crop": np.array([crop, index], np.uint32)})
        if readable:
            yield readable


class _Encoder:
    """The tokens of images, which the devices of this process share."""

    def __init__(self, tokenizer: Tokenizer, crop_padding: int | None, batch_size: int) -> None:
        mesh = make_mesh(jax.local_devices(), {})
        self.batch_size = batch_size + -batch_size % mesh.size
        self.most_codes = max(tokenizer.model.quantizer.codebook_sizes)
        self._rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
        self._model = tokenizer.model
        self._variables = jax.device_put(tokenizer.variables, whole)
        self._encode = functools.partial(jax.jit(_encode, static_argnums=(0, 4, 5)), tokenizer.model)
        self._crop_padding = crop_padding

    def shape(self, dataset: ImageDataset) -> list[int]:
        """Return the shape of an image's tokens."""
        spec = pixels_of(example_spec(dataset))
        images, crops = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype), jax.ShapeDtypeStruct((1, 2), jnp.uint32)
        tokens = jax.eval_shape(lambda *given: self._encode(*given, False, None), self._variables, images, crops)
        return list(tokens.shape[1:])

    def __call__(self, examples: Sequence[Example], mirrored: int) -> Int[np.ndarray, " images *tokens"]:
        """Return the tokens of at most a batch of images."""
        padded = [*examples, *[examples[0]] * (self.batch_size - len(examples))]
        images, crops = (
            jax.device_put(np.stack(of_examples), self._rows)
            for of_examples in (list(map(pixels_of, padded)), [example["crop"] for example in padded])
        )
        is_cropped = self._crop_padding is not None and bool(examples[0]["crop"][0])  # pyright: ignore[reportCallIssue]
        tokens = self._encode(
            self._variables, images, crops, bool(mirrored), self._crop_padding if is_cropped else None
        )
        return np.asarray(tokens)[: len(examples)]


def _encode(
    model: nn.Module,
    variables: PyTree,
    images: UInt8[Array, "batch *frames height width channels"],
    crops: UInt32[Array, "batch 2"],
    mirrored: bool,
    crop_padding: int | None,
) -> Int[Array, " batch *tokens"]:
    """The tokens of images, each shifted at random by the number of its crop and of itself."""
    if crop_padding is not None:

        def shifted(crop: UInt32[Array, "2"], image: UInt8[Array, "*frames height width channels"]) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(_SEED), crop[0]), crop[1])
            return augment(key, image[None], flip=False, crop_padding=crop_padding)[0]

        images = jax.vmap(shifted)(crops, images)
    if mirrored:
        images = images[..., ::-1, :]
    return model.apply(variables, to_model_range(images), method="encode")
