"""What the compiler is told about the backend it compiles a training step for."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp

# Gradients of 3x3 kernels take 25 ms instead of 43 with it (docs/performance.md).
_YNNPACK = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{operations}" for operations in ("DOT", "ELTWISE", "REDUCE")
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for ``jax.jit(..., compiler_options=...)`` of a training step, outside of any other ``jit``.

    Returns:
      On CPUs: matrix products, convolutions and what surrounds them by YNNPACK, where this version of XLA has it.
      Otherwise none.

    Example:
      >>> step = jax.jit(lambda x: x @ x, compiler_options=compiler_options())
      >>> step(jnp.ones((2, 2))).tolist()
      [[2.0, 2.0], [2.0, 2.0]]
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(jnp.negative).lower(jnp.zeros(())).compile(compiler_options=_YNNPACK)
    except jax.errors.JaxRuntimeError:
        # An experimental option: the next release may drop it, and refuses what it does not know.
        return {}
    return _YNNPACK


# JAX's own default of one second leaves out most of what a small model compiles.
_SHORTEST_COMPILATION = 0.2


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, under ``~/.cache/vqjax`` (or ``$XDG_CACHE_HOME/vqjax``).

    ``JAX_COMPILATION_CACHE_DIR`` names another directory, and ``JAX_ENABLE_COMPILATION_CACHE=false`` does without.
    Where the directory cannot be written to, nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqjax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
