"""What the compiler is told about the backend it compiles a training step for."""

import functools

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
