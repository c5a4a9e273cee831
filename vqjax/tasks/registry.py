"""Tasks by their names in configs."""

from vqjax.runtime.signature import Registry


def vqvae(*, kmeans_init: bool = False) -> None:
    """Train an autoencoder."""


TASKS = Registry({"vqvae": vqvae})
"""The tasks by name."""

defaults, build = TASKS.defaults, TASKS.build
