"""XLA options of the training step, and the persistent compilation cache."""

import functools

import jax
import jax.numpy as jnp

from vqjax.runtime.cache import user_cache

# Gradients of 3x3 kernels take 25 ms instead of 43 with it (docs/performance.md). Not with ELTWISE: a pass through the
# memory for each operation takes longer than XLA's own loops over several.
_YNNPACK = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{operations}" for operations in ("DOT", "REDUCE")
    )
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """Return ``compiler_options`` for the outermost ``jax.jit`` of a training step.

    Args:
      platform: That of the devices of the step, ``device.platform``; the process may have others.

    Returns:
      On CPUs, options that run matrix products, convolutions and sums in YNNPACK, if this version of XLA has it;
      otherwise none.

    Example:
      >>> step = jax.jit(lambda x: x @ x, compiler_options=compiler_options("cpu"))
      >>> step(jnp.ones((2, 2))).tolist()
      [[2.0, 2.0], [2.0, 2.0]]
    """
    if platform != "cpu":
        return {}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(jnp.negative).lower(jnp.zeros((), jnp.float32)).compile(compiler_options=_YNNPACK)
    except jax.errors.JaxRuntimeError:
        # The option is experimental: a release without it raises an error.
        return {}
    return _YNNPACK


# JAX's default of one second skips most programs of a small model, and tens of small ones take a second together.
_MIN_COMPILE_SECONDS = 0.0


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache under ``~/.cache/vqjax`` (or ``$XDG_CACHE_HOME/vqjax``).

    ``JAX_COMPILATION_CACHE_DIR`` names a different directory, and ``JAX_ENABLE_COMPILATION_CACHE=false`` disables the
    cache. Nothing is cached if the directory is not writable.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    directory = user_cache("compiled")
    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
