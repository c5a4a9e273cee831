"""Evaluation of a state, and of the checkpoint of a run."""

import dataclasses
import functools
import hashlib
import math
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vqjax.checkpointing.checkpoints import SavedNetworks, load_networks, tokenizer_of
from vqjax.checkpointing.discovery import CheckpointInfo
from vqjax.data import Batch, ImageDataset, Joined, Splits, evaluation_batches, fingerprint, load_splits, origin
from vqjax.data.batches import PARAMETERS_AXIS
from vqjax.data.reading import example_spec, has_clips
from vqjax.errors import UserError
from vqjax.evaluation import (
    BestAndWorst,
    CodeCounts,
    CodeUsage,
    EvaluationResult,
    ImageMean,
    Metric,
    Rows,
    evaluate,
    save_tokens,
    terminal_table,
    write_page,
    write_report,
)
from vqjax.evaluation.clips import OfFrames
from vqjax.evaluation.lpips import PerceptualDistance
from vqjax.evaluation.partial import PartialSums
from vqjax.functional.tokens import TokenInfo
from vqjax.quantizers.validation import shapes_by_path
from vqjax.reporting.progress import progress_of
from vqjax.runtime.files import new_file
from vqjax.runtime.paths import is_url
from vqjax.runtime.processes import assert_same_on_all_processes, is_main_process, join_if_asked
from vqjax.runtime.remote import check_storage, local_copy, shown
from vqjax.runtime.workdir import usable_workdir
from vqjax.tasks.classification import ClassificationTask
from vqjax.tasks.second_stage import SecondStageTask
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task
from vqjax.training.build import build_task, example_batch
from vqjax.training.config import check_only_data, complete, override_all
from vqjax.training.devices import gathered, make_mesh, state_sharding, without_mesh
from vqjax.training.protocols import Protocols
from vqjax.training.tokens import positions_of, tokenizer_context

PARTIAL_FILE = "partial.npz"


def evaluate_state(
    task: Task,
    state: TrainState,
    dataset: ImageDataset,
    *,
    batch_size: int,
    extra: Sequence[Metric] = (),
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
    intervals: bool = False,
    partial: PartialSums | None = None,
) -> EvaluationResult:
    """Compute the metrics of a task on a dataset.

    Args:
      task: The task.
      state: The state to evaluate.
      dataset: The examples.
      batch_size: Images per batch, over which ``perplexity_batch`` is measured.
      extra: Metrics and collectors besides those of the task.
      progress: Called with the number of images done.
      mesh: Devices that share each batch, those on which the state is; one device by default.
      intervals: Whether to compute 95 % intervals, too.
      partial: Sums of an evaluation that did not end, from which this one goes on.

    Returns:
      The numbers, and what was collected.
    """
    networks = state.replace(opt_state={}, log_sums={})
    if mesh is not None and PARAMETERS_AXIS in mesh.shape:
        networks = jax.device_put(networks, gathered(jax.tree.map(lambda x: x.sharding, networks)))
    result = evaluate(
        # Compared by its function: repeated evaluations share one compilation.
        jax.tree_util.Partial(task.evaluate, networks),
        evaluation_batches(dataset, min(batch_size, len(dataset)), 0 if partial is None else partial.next_index),
        [*task.metrics, *extra],
        progress=progress,
        mesh=mesh,
        intervals=intervals,
        partial=partial,
    )
    return dataclasses.replace(result, collected=result.collected | task.generate(networks))


def report(
    task: Task,
    result: EvaluationResult,
    config: ConfigDict,
    dataset: ImageDataset,
    *,
    split: str,
    step: int,
    directory: Path,
) -> dict[str, Any]:
    """Print the table of an evaluation and write its report, in the main process.

    Args:
      task: The task.
      result: The evaluation.
      config: Config of the run.
      dataset: The evaluated examples.
      split: ``"train"``, ``"eval"`` or ``"all"``.
      step: Training step of the evaluated state.
      directory: Directory of the report.

    Returns:
      Facts about what was evaluated, by name.
    """
    # The data are named by the dataset itself.
    groups = {name: group for name, group in config.items() if isinstance(group, ConfigDict) and name != "data"}
    context = {
        "dataset": dataset.name,
        "split": config.data.get(f"{split}_split", split),
        **{name: config.data[name] for name in ("image_size", "frames", "crop") if name in config.data},
        "checkpoint_step": step,
        **{name: group.name for name, group in groups.items() if "name" in group},
        **task.facts,
        "seed": config.seed,
    }
    if is_main_process():
        pictures = task.pictures(result.collected)
        print(terminal_table(result, context), flush=True)
        write_report(directory, result, context=context, pictures=pictures, config=config.to_dict())
        print(f"report:  {shown(directory / 'report.md')}")
        for name in pictures:
            print(f"picture: {shown(directory / f'{name}.png')}", flush=True)
    return context


def evaluate_workdir(
    workdir: str | Path,
    *overrides: str,
    step: int | None = None,
    best: bool = False,
    split: Literal["train", "eval", "all"] = "eval",
    batch_size: int | None = None,
    features: str | None = None,
    scaling: str | None = None,
    protocols: Sequence[str] = ("rfid_val",),
    statistics: str | None = None,
    lpips: Sequence[str] = (),
    export_tokens: str | Path | None = None,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> EvaluationResult:
    """Evaluate the checkpoint of a run, print the table and write report and page into ``workdir/eval``.

    --config.data.FIELD=VALUE evaluates on different images from those of the run, or on these if they have moved. The
    report on different images goes into its own directory. --config.task.tokenizer.workdir=DIR says where the tokenizer
    of a model of tokens is, if it has moved.

    Args:
      workdir: Directory of the run, or its URL.
      *overrides: Changes of the data, or the place of the tokenizer, as ``--config.data.field=value``.
      step: Step of the checkpoint; the newest by default.
      best: Evaluate the checkpoint with the best value of the metric config.keep_best instead.
      split: ``"eval"`` for the held-out images, ``"train"`` for the training images, ``"all"`` for both.
      batch_size: Images per batch, over which ``perplexity_batch`` is measured; the training batch by default.
      features: File of a feature network (pt_inception-2015-12-05-6726825d.pth of pytorch-fid), or ``inception``,
        which is looked for where PyTorch's tools store it, or the run of a classifier; for rFID, KID, the Inception
        score, precision and recall of reconstructions. For rFVD of clips, that of I3D (i3d_pretrained_400.pt of
        VideoGPT), or any of these by frame.
      scaling: How images are scaled to that network: ``pytorch-fid``, ``clean-fid``, ``tf1``, ``dgm-eval``,
        ``torch-fidelity-dinov2`` or ``fvd``; as published for the network by default.
      protocols: With commas: besides ``rfid_val``, which compares reconstructions with their originals,
        ``rfid_train``, with all training images, and ``rfid_rotation_trick``, as the code of that paper stores images.
      statistics: File of vqjax stats, pytorch-fid or guided diffusion (.npz), for the distance of the reconstructions
        from those images as well; with ``features``.
      lpips: Files of LPIPS over VGG-16 or AlexNet, as vqjax convert writes them.
      export_tokens: File for the indices, labels and file names of all images of the split (``.npz``).
      distributed: Join the other processes that Slurm, Open MPI or Kubernetes has started (docs/long-runs.md).
      coordinator_address: Elsewhere, to join others: HOST:PORT of process 0.
      num_processes: Elsewhere: the number of processes.
      process_id: Elsewhere: the number of this process, from 0.

    Returns:
      The numbers.

    Raises:
      UserError: There is no checkpoint or no data, or an argument is out of range.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size must be a positive integer, got {batch_size}.")
    if export_tokens is not None:
        export_tokens = _tokens_file(export_tokens)
    check_only_data(overrides, "an evaluation", "task.tokenizer")
    join_if_asked(distributed, coordinator_address, num_processes, process_id)
    # From here on there are arrays, which are on the devices of all processes.
    measures = Protocols(features, split=split, scaling=scaling, protocols=protocols, statistics=statistics)
    distances = [PerceptualDistance.from_file(file) for file in lpips]
    with without_mesh(), local_copy(workdir, "--workdir") as (directory, _):
        workdir = usable_workdir(directory)
        networks = load_networks(workdir, step, best=best)
        config = override_all(complete(networks.info.config), overrides)
        splits = load_splits(config.data)
        task = build_task(config, splits.train)
        if not task.reconstructs and (features or lpips or export_tokens):
            raise UserError(
                "--features, --lpips and --export_tokens need the run of a tokenizer, got one of the task "
                f"{config.task.name!r}; leave them out."
            )
        dataset = Joined(splits) if split == "all" else getattr(splits, split)
        if isinstance(task, ClassificationTask):
            _check_classes(networks.info, dataset)
        name = "eval" if split == "eval" else f"eval_{split}"
        if not _are_images_of_run(networks.info, splits, split):
            if overrides:
                name += f"_{re.sub(r'[^\w.-]+', '_', dataset.name)[:100]}"
            elif is_main_process():
                print("note: these images are not those that the run has seen.", file=sys.stderr, flush=True)
        mesh = _mesh(task)
        state = restored_state(networks, task, example_batch(dataset))
        if mesh is not None:
            state = jax.device_put(state, state_sharding(state, mesh, task))
        batch_size = batch_size or config.batch_size
        extra: list[Metric] = [OfFrames(metric) for metric in distances] if has_clips(dataset) else [*distances]
        extra += measures.metrics(splits, config.data, batch_size=batch_size, mesh=mesh)
        if export_tokens is not None:
            extra.append(Rows(_exported(dataset)))
        extra += _for_page([*task.metrics, *extra])
        (workdir / name).mkdir(exist_ok=True)
        partial = PartialSums(
            workdir / name / PARTIAL_FILE, _identity(networks, config, dataset, [*task.metrics, *extra], batch_size)
        )
        assert_same_on_all_processes(
            "partial sums",
            partial.next_index,
            "Use one --workdir that all of them can read, or remove the files eval/partial-*.npz.",
        )
        if partial.images and is_main_process():
            note = f"an evaluation was interrupted behind {partial.images} images, and goes on from there."
            print(note, file=sys.stderr, flush=True)
        if is_main_process():
            measures.note_few(dataset)
        result = evaluate_state(
            task,
            state,
            dataset,
            batch_size=batch_size,
            extra=extra,
            progress=progress_of(len(dataset)) if is_main_process() else None,
            mesh=mesh,
            intervals=True,
            partial=partial,
        )
        directory = workdir / name
        context = report(task, result, config, dataset, split=split, step=networks.info.step, directory=directory)
        if is_main_process():
            write_page(directory, result, context=context, caption=functools.partial(_caption, dataset))
            print(f"page:    {shown(directory / 'report.html')}", flush=True)
        if export_tokens is not None and is_main_process():
            rows, tokenizer = result.collected, tokenizer_of(networks, workdir)
            save_tokens(
                export_tokens,
                rows["indices"],
                num_codes=task.facts["num_codes"],
                context=context
                | {"tokenizer": tokenizer_context(tokenizer, workdir)}
                | {"codes_of_position": tokenizer.model.quantizer.codebook_sizes}
                | {"grid": positions_of(tokenizer, rows["indices"].shape[1:])},
                labels=rows.get("label"),
                class_names=dataset.class_names,
                origins=[origin(dataset, index) for index in rows["index"].tolist()],
            )
            print(f"tokens:  {export_tokens}")
        if is_main_process():
            partial.remove()
        return result


def _mesh(task: Task) -> Mesh | None:
    """All devices, if there are several that the task's own axes divide."""
    several = len(jax.devices()) > 1 and len(jax.devices()) % math.prod(task.mesh_axes.values()) == 0
    return make_mesh(None, task.mesh_axes) if several else None


def _identity(
    networks: SavedNetworks, config: ConfigDict, dataset: ImageDataset, metrics: Sequence[Metric], batch_size: int
) -> str:
    """What is evaluated, and how: partial sums of anything else are of no use."""
    checksum = 0
    for leaf in jax.tree.leaves((networks.params, networks.variables, networks.ema_params)):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    described = [f"{type(metric).__name__} {metric.protocol}" for metric in metrics]
    identity = (
        metadata.version("vqjax"),
        checksum,
        config.to_json_best_effort(),
        fingerprint(dataset),
        batch_size,
        described,
    )
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _for_page(metrics: Sequence[Metric]) -> list[Metric]:
    """Collectors of what the page shows besides the numbers of these metrics."""
    counts = [CodeCounts(metric.num_codes) for metric in metrics if isinstance(metric, CodeUsage)]
    return [BestAndWorst(tuple(metric for metric in metrics if isinstance(metric, ImageMean))), *counts]


def _caption(dataset: ImageDataset, index: int, label: int | None) -> str:
    """What the page calls an image: where it comes from, and its class."""
    if label is None or dataset.class_names is None:
        return origin(dataset, index)
    return f"{origin(dataset, index)}: {dataset.class_names[label]}"


def _exported(dataset: ImageDataset) -> tuple[str, ...]:
    """Rows of a token file."""
    return ("indices", "index", *example_spec(dataset).keys() & {"label"})


def _check_classes(info: CheckpointInfo, dataset: ImageDataset) -> None:
    """Refuse labels that stand for other classes than in the training."""
    known, names = info.class_names, tuple(dataset.class_names or ())
    if known is not None and names != known[: len(names)]:
        raise UserError(
            f"config.data must have the classes of the run, {_listed(known)}, as their labels are compared, got "
            f"{_listed(names)}; use data with the same classes, in this order."
        )


def _listed(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _are_images_of_run(info: CheckpointInfo, splits: Splits, split: str) -> bool:
    known = {"train": info.images, "eval": info.eval_images}
    wanted = ("train", "eval") if split == "all" else (split,)
    return all(known[name] == fingerprint(getattr(splits, name)) for name in wanted)


def restored_state(networks: SavedNetworks, task: Task, batch: Batch) -> TrainState:
    """Return the state of a checkpoint without its optimizers.

    Args:
      networks: Networks of the checkpoint.
      task: Task of its config.
      batch: Batch of one row.

    Raises:
      UserError: The data are not of the kind that the run was trained on.
    """
    if isinstance(task, SecondStageTask) and task.tokens is not None:
        _check_tokens(networks.info, task.tokens)
    key = jax.random.key(0)
    expected = jax.eval_shape(task.init, key, batch)
    # Others, such as a discriminator of images of one size, are not for evaluations.
    wanted, found = (shapes_by_path(params.get(task.network, {})) for params in (expected.params, networks.params))
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(
            f"config must be that of the run, and its data of the same kind, got {name} of shape {wanted.get(name)} "
            f"instead of {found.get(name)} in the checkpoint."
        )
    # Frozen networks are not in checkpoints; initial values are computed only if there are some.
    frozen = expected.frozen
    return TrainState(
        step=jnp.int32(networks.info.step),
        params=networks.params,
        variables=networks.variables,
        opt_state={},
        ema_params=networks.ema_params,
        frozen=task.init(key, batch).frozen if frozen else {},
    )


def _check_tokens(info: CheckpointInfo, tokens: TokenInfo) -> None:
    """Refuse tokens of another tokenizer, or of other images than a model can have learned."""
    known = info.tokens or {}
    for name, value in tokens.facts.items():
        # Files of tokens may not say what made them.
        if value is not None and known.get(name) not in (None, value):
            raise UserError(
                f"config.data must have tokens like those of the training, whose `{name}` is {known[name]!r:.80}, got "
                f"{value!r:.80}; pass those of the same tokenizer."
            )


def _tokens_file(path: str | Path) -> str | Path:
    """Refuse a file that cannot be written before the evaluation rather than after it."""
    if is_url(path) and str(path).endswith(".npz"):
        check_storage(path, "--export_tokens")
        return path
    return new_file(path, "--export_tokens", ending=".npz")
