"""Compiles for H100s on a machine without one: the program can be read, not run.

Needs the plugin of the installed jaxlib, about 3 GB with the libraries that come along:

    pip install "jax-cuda13-plugin[with-cuda]==$(python -c 'import jaxlib; print(jaxlib.__version__)')"

and ``JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 JAX_PLATFORMS=cpu`` in the environment, as the plugin refuses to start without a
driver otherwise. See jax-ml/jax#33542, openxla/xla#16913 and openxla/xla#25919.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled

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


def h100(num_devices: int = 1) -> topologies.TopologyDescription:
    """The topology of one host with a number of H100s."""
    shape = f"1x1x{num_devices}"
    return topologies.get_topology_desc(platform="cuda", topology_name=shape, topology=shape, target_config=_TARGET)


def compile_for_h100(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile a function for one H100.

    Args:
      function: What ``jax.jit`` takes.
      *arguments: Trees of arrays or of ``jax.ShapeDtypeStruct``.

    Returns:
      The program, with ``memory_analysis()`` and ``as_text()``.
    """
    place = SingleDeviceSharding(h100().devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    return jax.jit(function).lower(*shapes).compile()
