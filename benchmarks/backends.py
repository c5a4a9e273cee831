"""Quantizers and tasks on the default device beside the same on a CPU: python -m benchmarks.backends [NAME ...]

Each quantizer evaluates and takes a gradient; each task takes a step. Products are in float32 on both. Needs a GPU to
say anything; on a CPU all differences are zero.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Compiled

from benchmarks.measure import report
from vqjax import GradientCodebook, VectorQuantizer
from vqjax.data import to_model_range
from vqjax.models import registry as models
from vqjax.models.discriminators import PatchGAN, StyleGANDiscriminator
from vqjax.models.tokenizer import NETWORK
from vqjax.quantizers import build
from vqjax.quantizers.recipes import RECIPES
from vqjax.tasks.vqgan import VQGANTask
from vqjax.tasks.vqvae import VQVAETask

COLUMNS = ("name", "largest difference", "where", "indices differ", "of", "error")
_VQGAN = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (16,), "resolution": 32}
_VIT = {"dim": 64, "depth": 2, "heads": 2, "mlp_dim": 128, "patch_size": 4, "code_dim": 16}
_THREADS = 8


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help="all by default")
    report("backends", measure_all(parser.parse_args().names or list(CASES)), COLUMNS)


def measure_all(names: list[str]) -> list[dict[str, Any]]:
    """Compare all cases; one that fails is a row that says so.

    Args:
      names: Keys of ``CASES``.

    Returns:
      A row per case.
    """

    # Compiling takes most of the time, and leaves Python alone.
    with ThreadPoolExecutor(_THREADS) as threads:
        return [_row(name, job) for name, job in [(name, threads.submit(_compiled, name)) for name in names]]


def _compiled(name: str) -> list[tuple[Compiled, tuple]]:
    """The programs of both backends, and their arguments there."""
    function, arguments = CASES[name]()
    programs = []
    for device in (jax.local_devices(backend="cpu")[0], jax.local_devices()[0]):
        with jax.default_device(device), jax.default_matmul_precision("float32"):
            there = jax.device_put(arguments, device)
            programs.append((jax.jit(function).lower(*there).compile(), there))
    return programs


def _row(name: str, job: Future) -> dict[str, Any]:
    row = {"name": name, "largest difference": 0.0, "where": None, "indices differ": 0, "of": 0}
    try:
        results = [jax.device_get(program(*arguments)) for program, arguments in job.result()]
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {error}"[:500]}
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(results[0]), jax.tree.leaves(results[1]), strict=True
    ):
        one, other = np.asarray(one), np.asarray(other)
        if jnp.issubdtype(one.dtype, jnp.floating) and one.size:
            one, other = one.astype(np.float64), other.astype(np.float64)
            difference = float(np.max(np.abs(one - other))) / max(1.0, float(np.max(np.abs(one))))
            if not difference <= row["largest difference"]:
                row["largest difference"], row["where"] = difference, jax.tree_util.keystr(path)
        else:
            row["indices differ"] += int(np.sum(one != other))
            row["of"] += one.size
    return row


def _quantizer(name: str) -> tuple[Callable, tuple]:
    quantizer = build(**RECIPES[name])
    rngs = {"params": jax.random.key(1), "quantizer": jax.random.key(2)}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        z = jax.random.normal(jax.random.key(0), (32, 8, 8, 8))
        variables = jax.jit(quantizer.init)(rngs, z)

    def work(variables: dict, z: jax.Array) -> tuple:
        def loss(params: Any, z: jax.Array) -> tuple:
            options = {"train": True, "mutable": ["codebook"], "rngs": {"quantizer": jax.random.key(5)}}
            out, updates = quantizer.apply(variables | {"params": params}, z, **options)
            return out.loss + jnp.mean(jnp.sin(out.quantized)), (out, updates)

        trained = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables.get("params", {}), z)
        indices = quantizer.apply(variables, z, method="encode")
        return trained, indices, quantizer.apply(variables, indices, method="decode")

    return work, (variables, z)


def _task(task: VQVAETask) -> tuple[Callable, tuple]:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        state = jax.jit(task.init)(jax.random.key(0), {"image": jnp.asarray(images)})

    def work(state: Any, images: jax.Array) -> tuple:
        after, metrics = task.train_step(state, {"image": images}, jax.random.key(5))
        indices = task.model.apply(state.trained(NETWORK), to_model_range(images), method="encode")
        return after.params, after.variables, metrics, indices

    return work, (state, images)


def _vq(**options: Any) -> VectorQuantizer:
    return VectorQuantizer(num_codes=256, codebook=GradientCodebook(), **options)


def _mean_squared_error(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(reconstruction - images))


def _plain(name: str) -> VQVAETask:
    model = models.build(name=name, quantizer=_vq(), width=32)
    return VQVAETask(model, optax.sgd(0.1), _mean_squared_error)


def _adversarial(name: str, **options: Any) -> VQGANTask:
    model = models.build(name=name, quantizer=_vq(), **(_VQGAN if name == "vqgan" else _VIT))
    return VQGANTask(model, optax.sgd(0.1), _mean_squared_error, **options)


CASES: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    **{name: lambda name=name: _quantizer(name) for name in RECIPES},
    **{name: lambda name=name: _task(_plain(name)) for name in ("residual", "sonnet")},
    "vqgan": lambda: _task(_adversarial("vqgan", discriminator=PatchGAN(channels=16, num_layers=2))),
    "vit_vqgan": lambda: _task(
        _adversarial(
            "vit_vqgan", discriminator=StyleGANDiscriminator(channels=(16, 32, 32, 32)), r1_weight=1.0, order="together"
        )
    ),
}
"""Makes a function and its arguments, by name."""


if __name__ == "__main__":
    main()
