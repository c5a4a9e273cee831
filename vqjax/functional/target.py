"""The device that programs are for."""

import jax


def target() -> jax.Device:
    """Return the device that programs are for while they are traced.

    Returns:
      ``jax.default_device`` where it is set, otherwise the first device of the process. It need not be one of this
      machine: a program can be compiled for a device that others have (``benchmarks/h100.py``).

    Example:
      >>> with jax.default_device(jax.devices()[-1]):
      ...     target() == jax.devices()[-1]
      True
    """
    device = jax.config.jax_default_device
    if isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return jax.devices()[0] if device is None else device
