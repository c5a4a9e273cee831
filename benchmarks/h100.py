"""Compiles for H100s on a machine without one: the program can be read, not run.

Needs the plugin of the installed jaxlib, about 3 GB with the libraries that come along:

    pip install "jax-cuda13-plugin[with-cuda]==$(python -c 'import jaxlib; print(jaxlib.__version__)')"

and ``JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 JAX_PLATFORMS=cpu`` in the environment, as the plugin refuses to start without a
driver otherwise. See jax-ml/jax#33542, openxla/xla#16913 and openxla/xla#25919.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled, Lowered, Wrapped

_OF_HOST = 8

_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@functools.cache
def h100s(number: int = 1) -> tuple[jax.Device, ...]:
    """Return H100s to compile for: up to eight on one host, or several hosts of eight.

    Args:
      number: How many of them, in all.
    """
    of_host = min(number, _OF_HOST)
    shape = f"1x{number // of_host}x{of_host}"
    topology = topologies.get_topology_desc(platform="cuda", topology_name=shape, topology=shape, target_config=_TARGET)
    return tuple(topology.devices)


def lowered_for_h100(function: Wrapped, *arguments: Any) -> Lowered:
    """Trace and lower a function for the H100s that the shardings of its arguments name.

    Args:
      function: What ``jax.jit`` returns.
      *arguments: Trees of ``jax.ShapeDtypeStruct`` with shardings.

    Returns:
      The function, to be compiled.
    """
    devices = {device for leaf in jax.tree.leaves(arguments) for device in leaf.sharding.device_set}
    with jax.default_device(min(devices, key=lambda device: device.id)):
        return function.lower(*arguments)


def compile_for_h100(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile a function for one H100.

    Args:
      function: What ``jax.jit`` takes.
      *arguments: Trees of arrays or of ``jax.ShapeDtypeStruct``.

    Returns:
      The program, with ``memory_analysis()`` and ``as_text()``.
    """
    place = SingleDeviceSharding(h100s()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    return lowered_for_h100(jax.jit(function), *shapes).compile()
