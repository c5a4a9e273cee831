"""Training and testing as in the CIFAR-10 study: epochs of batches, and means over batches."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from studies.reproduction.layout import Layout
from studies.reproduction.variants import Variant
from vqjax.checkpointing.checkpoints import Checkpoints
from vqjax.data import Batch, batch_indices, to_model_range, to_uint8
from vqjax.data.arrays import ArrayDataset
from vqjax.errors import UserError
from vqjax.evaluation.metrics import psnr
from vqjax.functional.metrics import perplexity, usage
from vqjax.models.tokenizer import NETWORK
from vqjax.runtime.compilation import compiler_options
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.tasks.state import TrainState
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training.build import initial_state

BATCH_SIZE = 128
LEARNING_RATE = 2e-4
_ALL_IMAGES = 50_000
PICTURES = 8
_STEPS_PER_REPORT = 10
_MAX_STEPS_PER_DISPATCH = 39
_TRAINED = ("loss", "reconstruction_mse", "codebook_loss", "commitment_loss", "perplexity", "angle", "norm_ratio")
_TESTED = (*_TRAINED, "psnr", "indices_only_mse")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the runs.

    Attributes:
      name: Name on the command line and in the names of the runs.
      epochs: Passes over the training images.
      training_images: Number of training images, from the first.
      test_images: Number of test images, from the first; a last batch that is not whole is left out.
      seeds: Runs of each configuration.
    """

    name: str
    epochs: int
    training_images: int
    test_images: int
    seeds: int

    def __str__(self) -> str:
        seeds = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        return f"{self.length}, {self.test_images:,} test images, {seeds}"

    @property
    def length(self) -> str:
        """Length of one run, as text."""
        return f"{self.epochs} epochs of {self.training_images:,} images"

    @property
    def is_published(self) -> bool:
        """Whether epochs are as long as those of the study, so that its numbers can be compared."""
        return self.training_images == _ALL_IMAGES

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.training_images // BATCH_SIZE


class Cifar10(NamedTuple):
    """CIFAR-10 in memory, uint8."""

    training: UInt8[np.ndarray, "training 32 32 3"]
    test: UInt8[np.ndarray, "test 32 32 3"]


class Snapshot(NamedTuple):
    """State of a run after an epoch, for the figures.

    Attributes:
      epoch: Epoch, from 0.
      reconstructions: Reconstructions of the first test images.
      codes: The codebook.
      earlier_layout: Layout of the codebook in the snapshot before, if there is one.
    """

    epoch: int
    reconstructions: UInt8[np.ndarray, "images 32 32 3"]
    codes: Float[np.ndarray, "codes dim"]
    earlier_layout: Layout | None


class Training:
    """Training of one configuration.

    Args:
      variant: The variant.
      num_codes: Size of the codebook.
      commitment_weight: Weight of the commitment loss.
      scale: Numbers of epochs and images.
      images: CIFAR-10.
    """

    def __init__(
        self, variant: Variant, num_codes: int, commitment_weight: float, scale: Scale, images: Cifar10
    ) -> None:
        self._variant, self._scale = variant, scale
        self._model = variant.model(num_codes, commitment_weight)
        self._task = _Task(
            self._model,
            optax.adam(LEARNING_RATE),
            loss=lambda x, y: jnp.mean(jnp.square(x - y)),
            kmeans_init=variant.kmeans_start,
        )
        self._training = images.training[: scale.training_images]
        self._on_device = jax.device_put(self._training)
        self._test = jax.device_put(images.test[: scale.test_images // BATCH_SIZE * BATCH_SIZE])
        platform = next(iter(self._on_device.devices())).platform
        options = {"compiler_options": compiler_options(platform)}
        self._train_some = jax.jit(self._steps, donate_argnums=0, **options)
        self._test_batch = jax.jit(self._measure, **options)
        self._reconstruct = jax.jit(partial(self._model.apply, train=False))
        most = 1 if platform == "cpu" else _MAX_STEPS_PER_DISPATCH
        self._steps_per_dispatch = _largest_divisor(scale.steps_per_epoch, most)

    def run(
        self,
        seed: int,
        workdir: Path,
        settings: dict[str, Any],
        on_step: Callable[[int, dict[str, float]], None],
        on_snapshot: Callable[[Snapshot], Layout] | None = None,
    ) -> dict[str, Any]:
        """Train for all epochs, testing after each; continues an interrupted run.

        Args:
          seed: Seed of parameters, codes and the order of images.
          workdir: Directory of the state after each epoch; can be deleted after the run.
          settings: Facts of the run, kept with the state.
          on_step: Called now and then with the number of steps done and the metrics of the epoch so far.
          on_snapshot: Called after each of :func:`snapshot_epochs`, if given; returns the layout of the codebook.

        Returns:
          ``epochs``: for each the means over its batches, under ``train`` and ``test``, and after a snapshot
          ``codebook`` with ``layout`` and ``counts`` (test latents of each code).

        Raises:
          UserError: ``workdir`` holds an interrupted run of other settings.
        """
        _check_settings(workdir, settings)
        checkpoints = Checkpoints(workdir, settings, images="cifar10", eval_images="cifar10", keep=1)
        state = self._start(seed)
        restored = checkpoints.restore_latest(like=state.saved())
        state = state if restored is None else state.replace(**restored)
        done = int(state.step) // self._scale.steps_per_epoch
        history = _read_history(workdir)[:done]
        for epoch in range(done, self._scale.epochs):
            state, trained = self._train_epoch(state, epoch, seed, on_step)
            state, tested, counts = self._test_epoch(state)
            tested |= {"perplexity_split": float(perplexity(counts)), "usage_split": float(usage(counts))}
            measured = {"train": trained, "test": tested}
            if on_snapshot is not None and epoch in snapshot_epochs(self._scale.epochs):
                layout = on_snapshot(self._snapshot(state, epoch, history))
                measured["codebook"] = {"layout": layout.tolist(), "counts": np.asarray(counts, int).tolist()}
            history.append(measured)
            # Written before the checkpoint, whose step says how many epochs of the history count.
            _write_history(workdir, history)
            checkpoints.save(int(state.step), state.saved())
        checkpoints.close()
        return {"epochs": history}

    def _start(self, seed: int) -> TrainState:
        dataset = ArrayDataset("cifar10/train", self._training, 32)
        return initial_state(self._task, dataset, seed=seed, batch_size=BATCH_SIZE)

    def _train_epoch(self, state: TrainState, epoch: int, seed: int, on_step) -> tuple[TrainState, dict[str, float]]:
        per_epoch, images = self._scale.steps_per_epoch, len(self._training)
        state = state.replace(log_sums=_empty_log_sums())
        for first in range(0, per_epoch, self._steps_per_dispatch):
            steps = range(epoch * per_epoch + first, epoch * per_epoch + first + self._steps_per_dispatch)
            indices = np.stack([batch_indices(seed, step, BATCH_SIZE, images) for step in steps])
            state = self._train_some(state, self._on_device, indices, seed)
            done = first + self._steps_per_dispatch
            # Reading a number waits for its step.
            if done % _STEPS_PER_REPORT == 0 or self._steps_per_dispatch > 1:
                on_step(steps[-1] + 1, {name: float(value) / done for name, value in state.log_sums.items()})
        return state, {name: float(value) / per_epoch for name, value in state.log_sums.items()}

    def _steps(
        self,
        state: TrainState,
        images: UInt8[Array, "images 32 32 3"],
        indices: Int[Array, "steps batch"],
        seed: Int[Array, ""],
    ) -> TrainState:
        def one(state: TrainState, chosen: Int[Array, " batch"]) -> tuple[TrainState, None]:
            sums, key = state.log_sums, jax.random.fold_in(jax.random.key(seed), state.step)
            state, metrics = self._task.train_step(state, {"image": images[chosen]}, key)
            return state.replace(log_sums={name: total + metrics[name] for name, total in sums.items()}), None

        if len(indices) == 1:
            return one(state, indices[0])[0]
        return jax.lax.scan(one, state, indices)[0]

    def _test_epoch(self, state: TrainState) -> tuple[TrainState, dict[str, float], Float[Array, " codes"]]:
        batches = self._test.reshape(-1, BATCH_SIZE, *self._test.shape[1:])
        sums, counts = dict.fromkeys(_TESTED, jnp.zeros(())), jnp.zeros(self._model.quantizer.num_codes)
        for images in batches:
            metrics, of_codes, variables = self._test_batch(state.trained(NETWORK), images)
            sums = {name: total + metrics[name] for name, total in sums.items()}
            counts += of_codes
            if self._variant.moves_in_evaluation:
                state = state.replace(variables={NETWORK: variables})
        return state, {name: float(value) / len(batches) for name, value in sums.items()}, counts

    def _measure(self, variables: PyTree, images: UInt8[Array, "batch 32 32 3"]) -> tuple[dict, Array, PyTree]:
        pixels = to_model_range(images)
        output, changed = self._model.apply(variables, pixels, train=False, mutable=["codebook"])
        metrics = output.quantizer.metrics
        error = jnp.mean(jnp.square(output.reconstruction - pixels))
        from_indices = self._model.apply(variables, output.quantizer.indices, method="decode")
        metrics |= {
            "loss": error + output.quantizer.loss,
            "reconstruction_mse": error,
            "indices_only_mse": jnp.mean(jnp.square(from_indices - pixels)),
            "psnr": jnp.mean(psnr((pixels + 1) / 2, (jnp.clip(output.reconstruction, -1, 1) + 1) / 2)),
        }
        counts = jnp.bincount(output.quantizer.indices.reshape(-1), length=self._model.quantizer.num_codes)
        return {name: metrics[name] for name in _TESTED}, counts, dict(changed)

    def _snapshot(self, state: TrainState, epoch: int, history: Sequence[Mapping[str, Any]]) -> Snapshot:
        variables = state.trained(NETWORK)
        output = self._reconstruct(variables, to_model_range(self._test[:PICTURES]))
        every_index = jnp.arange(self._model.quantizer.num_codes)
        codes = self._model.apply(variables, every_index, method=lambda model, i: model.quantizer.decode(i))
        layouts = [measured["codebook"]["layout"] for measured in history if "codebook" in measured]
        earlier = np.asarray(layouts[-1]) if layouts else None
        return Snapshot(epoch, np.asarray(to_uint8(output.reconstruction)), np.asarray(codes), earlier)


def snapshot_epochs(epochs: int) -> list[int]:
    """List the epochs that figures show, from 0: the first, those after each quarter, the last.

    Example:
      >>> snapshot_epochs(100), snapshot_epochs(1)
      ([0, 25, 50, 75, 99], [0])
    """
    return sorted({0, epochs // 4, epochs // 2, 3 * epochs // 4, epochs - 1})


class _Task(VQVAETask):
    """The VQ-VAE task with PyTorch's initial parameters."""

    def init(self, key: Array, batch: Batch) -> TrainState:
        state = super().init(key, batch)
        return state.replace(params={NETWORK: initialize_like_pytorch(state.params[NETWORK], key)})


def initialize_like_pytorch(params: PyTree, key: Array) -> PyTree:
    """Draw the parameters of all convolutions as PyTorch does: uniform within one over the root of the fan-in.

    Args:
      params: Parameters of an autoencoder; those of its quantizer are kept.
      key: Random key.

    Returns:
      Parameters of the same shapes.

    Example:
      >>> params = {"encoder": {"Conv_0": {"kernel": jnp.zeros((1, 1, 4, 2)), "bias": jnp.zeros(2)}}}
      >>> drawn = initialize_like_pytorch(params, jax.random.key(0))["encoder"]["Conv_0"]
      >>> bool(abs(drawn["kernel"]).max() <= 0.5), drawn["bias"].shape
      (True, (2,))

    Source: torch.nn.Conv2d and ConvTranspose2d, whose fan-in counts output channels.
    """

    def drawn(layers: PyTree, path: tuple[str, ...]) -> Iterator[tuple[str, PyTree]]:
        for name, layer in layers.items():
            here = (*path, name)
            if name == "quantizer":
                yield name, layer
            elif "kernel" in layer:
                rows, columns, inputs, outputs = layer["kernel"].shape
                fan_in = rows * columns * (outputs if name.startswith("UpsamplingConv") else inputs)
                own_key = jax.random.fold_in(key, _number_of(here))
                yield name, _uniform_like(layer, own_key, fan_in**-0.5)
            else:
                yield name, dict(drawn(layer, here))

    return dict(drawn(params, ()))


def _empty_log_sums() -> dict[str, Array]:
    return {name: jnp.zeros(()) for name in _TRAINED}


def _uniform_like(layer: dict[str, Array], key: Array, bound: float) -> dict[str, Array]:
    keys = jax.random.split(key, len(layer))
    return {
        name: jax.random.uniform(own_key, layer[name].shape, minval=-bound, maxval=bound)
        for name, own_key in zip(sorted(layer), keys, strict=True)
    }


def _number_of(path: tuple[str, ...]) -> int:
    """A number that is the same for a path in every process, unlike ``hash``."""
    return int.from_bytes("/".join(path).encode()[-64:], "little") % (2**31 - 1)


def _largest_divisor(number: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def _check_settings(workdir: Path, settings: dict[str, Any]) -> None:
    path, expected = workdir / "settings.json", json.loads(strict_json(settings))
    if path.exists() and (stored := json.loads(path.read_text())) != expected:
        raise UserError(f"{workdir} holds an interrupted run of {stored}, not of {expected}. Delete that directory.")
    with atomic_file(path) as file:
        file.write(strict_json(expected).encode())


def _read_history(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "history.json"
    if not path.exists():
        return []
    history = json.loads(path.read_text())
    for measured in history:
        for split in ("train", "test"):
            # JSON has no NaN.
            measured[split] = {k: math.nan if value is None else value for k, value in measured[split].items()}
    return history


def _write_history(workdir: Path, history: list[dict[str, Any]]) -> None:
    with atomic_file(workdir / "history.json") as file:
        file.write(strict_json(history).encode())
