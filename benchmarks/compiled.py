"""Every program at its published size, compiled for H100s and not run: python -m benchmarks.compiled [NAME ...]

Needs what benchmarks/h100.py needs, but no GPU. The programs are those of the trainer, twenty steps each, and those of
evaluation and sampling, for one H100 and for eight; ``--scale`` compiles training for 8, 64 and 512 of them instead,
with as many images on each. No array is made. Each program is compiled in a process of its own, so that one which fails
is a row that says so; rows of programs that are not named stay in the file.
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks.h100 import h100s, lowered_for_h100
from benchmarks.measure import report, results_file
from benchmarks.programs import Program
from studies.common.workers import alone
from vqjax.data.arrays import ArrayDataset
from vqjax.data.batches import PARAMETERS_AXIS, batch_axes, num_parts
from vqjax.data.clips import ClipPlan
from vqjax.data.dataset import ImageDataset
from vqjax.data.feeds import ResidentFeed, StreamedFeed
from vqjax.data.images import height_and_width
from vqjax.data.reading import bytes_per_example, example_spec
from vqjax.data.tokens import TokenDataset
from vqjax.data.video_arrays import VideoArray
from vqjax.evaluation.features import FeatureNetwork
from vqjax.functional import nearest_codes
from vqjax.functional.tokens import TokenInfo
from vqjax.models.inception import FIDInception
from vqjax.models.lpips import LPIPS
from vqjax.models.registry import build_model
from vqjax.models.tokenizer import NETWORK, Tokenizer
from vqjax.quantizers import defaults
from vqjax.tasks import registry
from vqjax.tasks.second_stage import TOKENIZER, SecondStageTask
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task
from vqjax.tasks.vqgan import PERCEPTUAL, VQGANTask
from vqjax.training.build import build_task
from vqjax.training.config import load_config, validate
from vqjax.training.devices import gathered, make_mesh, state_sharding
from vqjax.training.dispatch import make_dispatch, make_step, placed_shapes

COLUMNS = (
    "case",
    "use",
    "devices",
    "compiled in s",
    "state MiB",
    "temporary MiB",
    "products",
    "scores MiB",
    "exchanged MiB",
    "beyond the promise MiB",
    "findings",
)
SCALE_COLUMNS = ("case", "devices", "state MiB", "temporary MiB", "exchanged MiB", "findings")
STEPS = 20
"""Steps in a program, as the trainer has them on GPUs."""

_IMAGENET, _CIFAR10, _CLIPS, _SAMPLES = 1_281_167, 50_000, 43_264, 80
_MIB = 2**20
_LARGEST_CHUNK = 2**26
_FEW = 4096
"""Bytes: a few numbers, such as the loss and the norm of the gradient, and features of the statistics of a batch."""


class Case(NamedTuple):
    """A training run at its published size.

    Attributes:
      config: As ``--config`` takes it.
      examples: Number of training examples.
      classes: Number of their classes; 0 for none.
      overrides: As ``--config.FIELD`` takes them.
      tokenizer: Case of the tokenizer, for models of tokens.
    """

    config: str
    examples: int
    classes: int
    overrides: tuple[str, ...] = ()
    tokenizer: str | None = None


_GRADIENT = ("quantizer.codebook.name=gradient", "quantizer.codebook.weight=0")
_BFLOAT16 = "model.dtype=bfloat16"
_LPIPS = "task.perceptual.file=lpips"
_VQGAN = (_LPIPS, _BFLOAT16, "task.discriminator.dtype=bfloat16")

CASES = {
    "cifar10": Case("cifar10", _CIFAR10, 10),
    "cifar10 bfloat16": Case("cifar10", _CIFAR10, 10, (_BFLOAT16,)),
    "sonnet": Case("cifar10:sonnet", _CIFAR10, 10),
    "alternating": Case("cifar10", _CIFAR10, 10, ("task.name=alternating", *_GRADIENT)),
    "decoder_gradient": Case("imagenet_vqvae:latent=64x64x3,estimator=exact", _IMAGENET, 1000),
    "imagenet_vqvae": Case("imagenet_vqvae", _IMAGENET, 1000),
    "imagenet_vqvae 64x64x3": Case("imagenet_vqvae:latent=64x64x3", _IMAGENET, 1000),
    "vqgan f16": Case("vqgan", _IMAGENET, 1000, _VQGAN),
    "vqgan f16 float32": Case("vqgan", _IMAGENET, 1000, (_LPIPS,)),
    "ldm f4": Case("vqgan:model=ldm_f4", _IMAGENET, 1000, _VQGAN),
    "vit_vqgan small": Case("vit_vqgan", _IMAGENET, 1000, _VQGAN),
    "vit_vqgan base": Case("vit_vqgan:size=base", _IMAGENET, 1000, _VQGAN),
    "resnet18 cifar10": Case("classify_cifar10:vq", _CIFAR10, 10),
    "resnet18 imagenet": Case("classify_imagenet:vq", _IMAGENET, 1000),
    "autoregressive": Case("generate", _IMAGENET, 1000, tokenizer="vqgan f16"),
    "masked_tokens": Case("generate:masked", _IMAGENET, 1000, tokenizer="vqgan f16"),
    "next_scale": Case(
        "generate", _IMAGENET, 1000, ("model.name=next_scale_transformer", "task.name=next_scale"), "multi-scale"
    ),
    "causal_video": Case("video:folder=clips", _CLIPS, 0),
    "timesformer": Case("timesformer", _CLIPS, 0, (_LPIPS, "task.discriminator.dtype=bfloat16")),
}
"""Published sizes by name."""

TOKENIZERS = {"multi-scale": Case("vqgan", _IMAGENET, 1000, (_BFLOAT16, "model.latent_dim=32", "model.code_dim=32"))}
"""Tokenizers that only models of tokens need, by name."""
_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

_LARGE = ("model.latent_dim=256", "quantizer.num_codes=262144", "batch_size=1024")
_OF_CODES, _OF_PARAMETERS = ("quantizer.codebook_shards=8",), ("parameter_shards=8",)
_LEARNED = (*_LARGE, "quantizer.codebook.name=gradient")


def _study(*overrides: str) -> Case:
    return Case("cifar10", _CIFAR10, 10, overrides)


SCALED = {
    "vqgan f16": CASES["vqgan f16"],
    "vqgan f16, parameter_shards=8": Case("vqgan", _IMAGENET, 1000, (*_VQGAN, *_OF_PARAMETERS)),
    "2^18 codes": _study(*_LARGE),
    "2^18 codes, codebook_shards=8": _study(*_LARGE, *_OF_CODES),
    "2^18 codes by gradient": _study(*_LEARNED),
    "2^18 codes by gradient, codebook_shards=8": _study(*_LEARNED, *_OF_CODES),
    "2^18 codes by gradient, parameter_shards=8": _study(*_LEARNED, *_OF_PARAMETERS),
}
"""Training runs for 8, 64 and 512 devices by name: VQGAN, and the CIFAR-10 study's tokenizer with 256 features."""
SCALED_DEVICES = (8, 64, 512)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*(CASES | OTHERS | SCALED), []], help="all by default")
    parser.add_argument("--scale", action="store_true", help="for 8, 64 and 512 devices")
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of devices")
    options = parser.parse_args()
    # The plugin refuses to start without a driver, and workers inherit both.
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
    if options.scale:
        programs = [(name, "train") for name in options.names or SCALED]
        _run("compiled-scale", programs, options.devices or SCALED_DEVICES, SCALE_COLUMNS)
    else:
        programs = [(name, use) for name in options.names or [*CASES, *OTHERS] for use in uses(name)]
        _run("compiled", programs, options.devices or (1, 8), COLUMNS)


_USES = ("train", "evaluate", "sample", "apply")


def uses(name: str) -> tuple[str, ...]:
    """Return what is compiled of a case: training, evaluation, and sampling of a model of tokens."""
    if name in OTHERS:
        return ("apply",)
    return ("train", "evaluate", "sample") if CASES[name].tokenizer else ("train", "evaluate")


def _run(benchmark: str, programs: Sequence[tuple[str, str]], devices: Sequence[int], columns: Sequence[str]) -> None:
    """Compile programs for numbers of devices, and report each as soon as it is known."""
    file = results_file(benchmark, "h100")
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {(row["case"], row["use"], row["devices"]): row for row in known}
    order = [*(CASES | OTHERS | SCALED)]
    for name, use in programs:
        for number in devices:
            print(f"compiling {name}, {use} for {number}", file=sys.stderr, flush=True)
            rows[name, use, number] = {"case": name, "use": use, "devices": number} | _row(name, use, number)
            # By case, as training comes before evaluation and fewer devices before more.
            ordered = sorted(
                rows.items(), key=lambda item: (order.index(item[0][0]), _USES.index(item[0][1]), item[0][2])
            )
            report(benchmark, [row for _, row in ordered], columns, "h100")


def _row(name: str, use: str, number: int) -> dict[str, Any]:
    try:
        return alone(measure, name, use, number)
    except Exception as error:
        # XLA ends the process where it finds itself inconsistent.
        return {"findings": f"failed: {type(error).__name__}: {error}"[:500]}


def measure(name: str, use: str, number: int) -> dict[str, Any]:
    """Compile one program and read it.

    Args:
      name: A key of ``CASES``, ``OTHERS`` or ``SCALED``.
      use: ``"train"``, ``"evaluate"``, ``"sample"``, or ``"apply"`` for a function that belongs to no task.
      number: Number of devices.

    Returns:
      A row.
    """
    if use == "apply":
        work = OTHERS[name](h100s(number))
    else:
        case, config = case_of(name, number)
        work = WORK[use](Setting(case, config), h100s(number))
    return read(work, number)


def case_of(name: str, number: int) -> tuple[Case, ConfigDict]:
    """Return a case and its config; on more than eight devices each has as many images as on eight.

    Args:
      name: A key of ``CASES``, ``TOKENIZERS`` or ``SCALED``.
      number: Number of devices.
    """
    case = (SCALED | TOKENIZERS | CASES)[name]
    config = load_config(case.config, [f"--config.{override}" for override in case.overrides])
    if name == "multi-scale":
        single = config.quantizer.to_dict() | {"num_codes": 4096}
        config.quantizer = defaults("multi_scale_vq", quantizer=single, scales=_SCALES)
    if number > SCALED_DEVICES[0]:
        config.batch_size *= number // SCALED_DEVICES[0]
    if case.tokenizer is not None:
        config.task.tokenizer = {"name": "run", "workdir": case.tokenizer, "step": None}
    return case, validate(config)


class Work(NamedTuple):
    """A program, and what is known of it before it is compiled.

    Attributes:
      function: What ``jax.jit`` returns.
      arguments: Shapes of its arguments, with shardings.
      state: Bytes of the state on a device.
      scores: Tokens of a device, and codes, where there is a codebook.
      promised: Bytes that devices exchange in a step by docs/long-runs.md; None if nothing is promised.
      dtype: The type in which the products are meant to be.
    """

    function: Wrapped
    arguments: tuple[PyTree, ...]
    state: int
    scores: tuple[int, int] | None = None
    promised: int | None = None
    dtype: str = "float32"


def read(work: Work, number: int) -> dict[str, Any]:
    """Compile a program and say what it holds.

    Args:
      work: The program.
      number: Number of devices.

    Returns:
      Numbers and findings by name.
    """
    began = time.perf_counter()
    lowered = lowered_for_h100(work.function, *work.arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    exchanged = program.exchanged()
    in_float32 = Counter(_short(product.place) for product in program.products if product.precision == "f32")
    in_tf32 = Counter(_short(product.place) for product in program.products if product.precision == "tf32")
    scores = program.matrices(*work.scores) if work.scores else []
    row = {
        "traced in s": traced - began,
        "compiled in s": ended - traced,
        "state MiB": work.state / _MIB,
        "arguments MiB": memory.argument_size_in_bytes / _MIB,
        "temporary MiB": memory.temp_size_in_bytes / _MIB,
        "results MiB": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / _MIB,
        "products": ", ".join(f"{count} {kind}" for kind, count in sorted(program.counted().items())) or None,
        "in float32": dict(in_float32),
        "in TF32": dict(in_tf32) if work.dtype == "bfloat16" else {},
        "copied MiB": sum(array.bytes for array in program.copied) / _MIB,
        "largest arrays": [f"{array.dtype}{list(array.shape)}" for array in _largest(program)],
        "scores MiB": max((array.bytes / _MIB for array in scores), default=0.0) if work.scores else None,
        "64 bits": len(program.wide),
        "to the host": program.to_the_host,
    }
    if number > 1:
        row |= {"exchanged MiB": sum(exchanged) / _MIB, "largest exchanges": sorted(exchanged, reverse=True)[:8]}
        if work.promised is not None:
            row |= {
                "promised MiB": work.promised / _MIB,
                "beyond the promise MiB": (sum(exchanged) - work.promised) / _MIB,
            }
    return row | {"findings": "; ".join(_findings(row, work)) or None}


def _findings(row: Mapping[str, Any], work: Work) -> list[str]:
    found = [f"{row['64 bits']} arrays of 64 bits"] if row["64 bits"] else []
    found += [f"to the host: {', '.join(row['to the host'])}"] if row["to the host"] else []
    if work.scores and row["scores MiB"] * _MIB > 4 * _LARGEST_CHUNK:
        found.append(f"scores of {row['scores MiB']:.0f} MiB")
    if row.get("beyond the promise MiB", 0.0) * _MIB > _FEW:
        found.append(f"exchanges {row['beyond the promise MiB']:.2f} MiB more than promised")
    return found


def _largest(program: Program) -> list[Any]:
    return sorted(set(program.arrays), key=lambda array: -array.bytes)[:5]


def _short(place: str) -> str:
    """A place without what wraps it, such as the loop over steps."""
    return place.removeprefix("jit(take_steps)/").removeprefix("while/body/")


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The task, the data and the state of a config, as shapes without arrays.

    Attributes:
      case: What it is called.
      config: A valid config.
    """

    case: Case
    config: ConfigDict

    @functools.cached_property
    def dataset(self) -> ImageDataset:
        """A few examples of the right shapes."""
        return stand_in(self.case, self.config)

    @functools.cached_property
    def frozen(self) -> dict[str, PyTree]:
        """Shapes of the networks that never change, by name."""
        if self.case.tokenizer is not None:
            return {TOKENIZER: self._tokenizer.variables}
        if "perceptual" in self.config.task and self.config.task.perceptual is not None:
            side = jnp.zeros((1, *height_and_width(self.config.data.image_size), 3))
            return {PERCEPTUAL: jax.eval_shape(LPIPS().init, _KEY, side, side)}
        return {}

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        _, config = case_of(self.case.tokenizer, 1)
        model = build_model(config.model, config.quantizer)
        images = jnp.zeros((1, *height_and_width(config.data.image_size), 3))
        variables = jax.eval_shape(model.init, {"params": _KEY, "quantizer": _KEY}, images)
        return Tokenizer(model, variables, config={}, step=0)

    @functools.cached_property
    def task(self) -> Task:
        """The task, whose frozen networks are shapes."""
        load_tokenizer = mock.Mock(side_effect=lambda *_: self._tokenizer)
        load_lpips = mock.Mock(side_effect=lambda *_: (LPIPS(), self.frozen[PERCEPTUAL]))
        with mock.patch.multiple(registry, load_tokenizer=load_tokenizer, load_lpips=load_lpips):
            return build_task(self.config, self.dataset)

    def batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch."""
        spec = example_spec(self.dataset)
        return {name: jax.ShapeDtypeStruct((rows, *entry.shape), entry.dtype) for name, entry in spec.items()}

    def state(self) -> TrainState:
        """Shapes of the state before the first step."""

        def start(frozen: dict[str, PyTree], key: jax.Array, batch: PyTree) -> TrainState:
            task = self.task
            if PERCEPTUAL in frozen:
                assert isinstance(task, VQGANTask)
                perceptual = dataclasses.replace(task.perceptual, variables=frozen[PERCEPTUAL])
                task = dataclasses.replace(task, perceptual=perceptual)
            if TOKENIZER in frozen:
                assert isinstance(task, SecondStageTask)
                tokenizer = dataclasses.replace(task.tokenizer, variables=frozen[TOKENIZER])
                task = dataclasses.replace(task, tokenizer=tokenizer)
            return task.init(key, batch)

        return jax.eval_shape(start, self.frozen, _KEY, self.batch(1))

    @property
    def scores(self) -> tuple[int, int] | None:
        """Tokens of a batch, and codes; None for models that have no codebook, and for several codebooks."""
        quantizer = getattr(getattr(self.task, "model", None), "quantizer", None)
        if quantizer is None or not isinstance(getattr(quantizer, "num_codes", None), int):
            return None
        batch = self.batch(1)
        pixels = jax.tree.map(lambda x: jnp.zeros(x.shape), batch["video" if "video" in batch else "image"])
        variables = self.state().trained(NETWORK)
        model = self.task.model.clone(microbatches=1)
        latents = jax.eval_shape(lambda v: model.apply(v, pixels, train=False, method="latents"), variables)
        return self.config.batch_size * latents.size // latents.shape[-1], quantizer.num_codes


_KEY = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def stand_in(case: Case, config: ConfigDict) -> ImageDataset:
    """Return two examples of the shapes that a config trains on.

    Args:
      case: What is trained.
      config: Its config.
    """
    names = tuple(map(str, range(case.classes))) or None
    labels = np.zeros(2, np.int32) if case.classes else None
    if case.tokenizer is not None:
        info = _tokens(case)
        return TokenDataset("tokens", [(np.zeros((2, *info.shape), np.uint16), labels)], info, names)
    side, random = height_and_width(config.data.image_size), np.random.default_rng(0)
    if "frames" in config.data:
        clips = random.integers(0, 256, (2, config.data.frames, *side, 3), np.uint8)
        return VideoArray("noise", clips, side, ClipPlan(config.data.frames), labels, names)
    return ArrayDataset("noise", random.integers(0, 256, (2, *side, 3), np.uint8), side, labels, names)


def _tokens(case: Case) -> TokenInfo:
    _, config = case_of(case.tokenizer, 1)
    if "scales" in config.quantizer:
        scales = tuple((side, side) for side in config.quantizer.scales)
        positions = sum(rows * columns for rows, columns in scales)
        codes = config.quantizer.quantizer.num_codes
        return TokenInfo((codes,), (positions,), case.classes, scales, config.model.latent_dim)
    side = config.data.image_size // 2 ** (len(config.model.multipliers) - 1)
    return TokenInfo((config.quantizer.num_codes,), (side, side), case.classes)


def training(setting: Setting, devices: Sequence[jax.Device], steps: int = STEPS) -> Work:
    """Return the program of the trainer.

    Args:
      setting: What is trained.
      devices: The devices.
      steps: Steps per dispatch.
    """
    task, config = setting.task, setting.config
    mesh = _mesh(setting, devices)
    batch, state = setting.batch(config.batch_size), setting.state()
    step = make_step(task, config.seed)
    placed = placed_shapes(task, step, state, batch, mesh)
    sharding = jax.tree.map(lambda shape: shape.sharding, placed)
    feed, staged = _staged(setting, batch, steps, mesh)
    dispatch = make_dispatch(step, feed.select, steps_per_dispatch=steps, sharding=sharding.replace(frozen={}))
    count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return Work(
        dispatch,
        (placed.replace(frozen={}), placed.frozen, staged, count),
        _bytes_on_a_device(placed),
        _on_a_device(setting.scores, mesh),
        # What crosses the parts of a codebook, or of parameters, is not part of the promise.
        promised(placed, getattr(task, "codebook_steps", None) or 0) if mesh.size == mesh.shape["data"] else None,
        config.model.get("dtype", "float32"),
    )


def _mesh(setting: Setting, devices: Sequence[jax.Device]) -> Mesh:
    return make_mesh(list(devices), {**setting.task.mesh_axes, PARAMETERS_AXIS: setting.config.parameter_shards})


def _on_a_device(scores: tuple[int, int] | None, mesh: Mesh) -> tuple[int, int] | None:
    if scores is None:
        return None
    return scores[0] // num_parts(mesh), scores[1] // mesh.shape.get("codes", 1)


def _staged(
    setting: Setting, batch: Mapping[str, jax.ShapeDtypeStruct], steps: int, mesh: Mesh
) -> tuple[type[ResidentFeed | StreamedFeed], PyTree]:
    """The feed that the trainer chooses, and the shapes of what it stages."""
    data, examples = setting.config.data, setting.case.examples
    is_large = examples * bytes_per_example(setting.dataset) > data.resident_limit_mb * _MIB
    if is_large or data.get("random_crop") or data.get("random_start"):
        return StreamedFeed, StreamedFeed.describe(batch, steps, mesh)
    return ResidentFeed, ResidentFeed.describe(batch, examples, steps, mesh)


def _placed(tree: PyTree, sharding: PyTree) -> PyTree:
    """Shapes with shardings: one for each, or one for all."""

    def placed(place: NamedSharding, part: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), part)

    return jax.tree.map(placed, sharding, tree)


def _whole_and_by_rows(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """The shardings of what each device has as a whole, and of rows that they share."""
    mesh = make_mesh(list(devices), {})
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def _bytes_on_a_device(tree: PyTree) -> int:
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shards)


def promised(state: TrainState, codebook_steps: int = 0) -> int:
    """Return the bytes that devices exchange in a step: gradients once, and a row for each code (docs/long-runs.md).

    Args:
      state: Shapes of the state.
      codebook_steps: Steps of the codes alone before a step.
    """
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.variables)):
        name = getattr(path[-1], "key", None)
        if name in ("counts", "sums"):
            statistics += 4 * leaf.size
        elif name == "codes" and path[0].idx == 0:
            # Codes that are parameters are counted, too, and have gradients of their own in steps of their own.
            statistics += 4 * leaf.shape[0] + codebook_steps * 4 * leaf.size
    return gradients + statistics


def evaluation(setting: Setting, devices: Sequence[jax.Device]) -> Work:
    """Return the program of a batch of an evaluation, with the metrics of the task.

    Args:
      setting: What has been trained.
      devices: The devices.
    """
    task, mesh = setting.task, _mesh(setting, devices)
    networks = setting.state().replace(opt_state={}, log_sums={})
    placed = _placed(networks, gathered(state_sharding(networks, mesh, task)))
    rows = setting.config.batch_size
    batch = setting.batch(rows) | {
        "valid": jax.ShapeDtypeStruct((rows,), np.bool_),
        "index": jax.ShapeDtypeStruct((rows,), np.int32),
    }
    by_rows = NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))

    def evaluate(networks: TrainState, batch: PyTree) -> list[PyTree]:
        outputs = batch | task.evaluate(networks, batch)
        return [metric.measure(outputs) for metric in task.metrics]

    return Work(
        jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec())),
        (placed, _placed(batch, by_rows)),
        _bytes_on_a_device(placed),
        _on_a_device(setting.scores, mesh),
        dtype=setting.config.model.get("dtype", "float32"),
    )


def sampling(setting: Setting, devices: Sequence[jax.Device]) -> Work:
    """Return the program that draws a batch of images with guidance, from tokens to pixels.

    Args:
      setting: What has been trained.
      devices: The devices.
    """
    task, (whole, by_rows) = setting.task, _whole_and_by_rows(devices)
    assert isinstance(task, SecondStageTask)
    placed = _placed(task.networks(setting.state()), whole)

    def draw(networks: PyTree, key: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        grids = task.grids(task.sample(networks, key, classes, guidance=1.5))
        return grids, task.decoded(networks, grids)

    key = jax.ShapeDtypeStruct(_KEY.shape, _KEY.dtype, sharding=whole)
    classes = jax.ShapeDtypeStruct((_SAMPLES,), np.int32, sharding=by_rows)
    return Work(
        jax.jit(draw),
        (placed, key, classes),
        _bytes_on_a_device(placed),
        dtype=setting.config.model.get("dtype", "float32"),
    )


WORK: dict[str, Callable[..., Work]] = {"train": training, "evaluate": evaluation, "sample": sampling}
"""Programs of a task by what they are for."""


def _inception(devices: Sequence[jax.Device]) -> Work:
    """Features of 128 images, of which a device takes 32 at a time."""
    whole, by_rows = _whole_and_by_rows(devices)
    placed = _placed(jax.eval_shape(FIDInception().init, _KEY, jnp.zeros((1, 299, 299, 3))), whole)
    images = jax.ShapeDtypeStruct((128, 256, 256, 3), np.uint8, sharding=by_rows)

    def features(variables: PyTree, images: jax.Array) -> PyTree:
        return FeatureNetwork(FIDInception(), variables, "inception", "any")(images)

    return Work(jax.jit(features), (placed, images), _bytes_on_a_device(placed))


def _search(devices: Sequence[jax.Device]) -> Work:
    """The nearest of 16,384 codes of 256 features for 65,536 latents on each device."""
    tokens, codes, dim = 65_536, 16_384, 256
    whole, by_rows = _whole_and_by_rows(devices)
    arguments = (
        jax.ShapeDtypeStruct((tokens * len(devices), dim), np.float32, sharding=by_rows),
        jax.ShapeDtypeStruct((codes, dim), np.float32, sharding=whole),
    )
    return Work(jax.jit(nearest_codes), arguments, 4 * codes * dim, (tokens, codes), promised=0)


OTHERS: dict[str, Callable[[Sequence[jax.Device]], Work]] = {"inception": _inception, "search": _search}
"""Programs of no task by name."""


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
