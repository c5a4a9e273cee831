"""Computation on meshes whose axes are explicit, as ``jax.make_mesh`` makes them by default.

There every operation states how its result is divided over devices, and those that cannot tell (gathers, sums over a
divided axis, reshapes) refuse. What is computed here leaves that to the compiler, as on a mesh with automatic axes:
arguments lose the axes from their types, and results get them back.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def with_automatic_axes[**P, R](like: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a pure function to leave the division of its work over devices to the compiler.

    Args:
      like: Name of the argument whose leading axes the results have: they are divided as its axes are. By default
        every device gets the whole results.

    Returns:
      The decorator. Without explicit axes, the function is called as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> @with_automatic_axes(like="indices")
      ... def look_up(table, indices):
      ...     return table[indices]
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> indices = jax.device_put(jnp.array([1, 0]), NamedSharding(mesh, PartitionSpec("data")))
      >>> look_up(jnp.array([5.0, 7.0]), indices).sharding.spec == PartitionSpec("data")
      True
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            mesh = explicit_mesh((args, kwargs))
            if mesh is None:
                return function(*args, **kwargs)
            model = None if like is None else signature.bind(*args, **kwargs).arguments[like]
            args, kwargs = without_axes((args, kwargs), mesh)
            with automatic(mesh):
                results = function(*args, **kwargs)
            return divided_like(model, results, mesh)

        return decorated

    return decorate


def explicit_mesh(*trees: PyTree) -> AbstractMesh | None:
    """Return the mesh whose explicit axes divide any of the arrays; None without one."""
    shardings = [jax.typeof(x).sharding for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    return next((s.mesh for s in shardings if s.mesh.explicit_axes and any(s.spec)), None)


@contextlib.contextmanager
def automatic(mesh: AbstractMesh) -> Iterator[None]:
    """Take the explicit axes of a mesh for automatic ones."""
    with jax.sharding.use_abstract_mesh(mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))):
        yield


def without_axes(tree: PyTree, mesh: AbstractMesh) -> PyTree:
    """Return arrays without explicit axes in their types, for :func:`automatic`; they stay where they are."""

    def without(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        if jax.typeof(x).sharding.mesh.empty and not jax.sharding.get_abstract_mesh().empty:
            # On no mesh, as constants are: gradients come back by the same way.
            x = with_spec(x, PartitionSpec(), mesh)
        with automatic(mesh):
            return jax.sharding.reshard(x, PartitionSpec())

    return jax.tree.map(without, tree)


def divided_like(model: Any, tree: PyTree, mesh: AbstractMesh) -> PyTree:
    """Return arrays with explicit axes again: leading axes are divided as those of ``model`` of the same size."""
    shape, spec = ((), ()) if not isinstance(model, jax.Array) else (model.shape, spec_of(model))

    def divided(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        same = 0
        while same < min(len(shape), x.ndim) and shape[same] == x.shape[same]:
            same += 1
        return with_spec(x, PartitionSpec(*spec[:same]), mesh)

    return jax.tree.map(divided, tree)


def spec_of(x: Array) -> PartitionSpec:
    """Return how the type of an array says that it is divided."""
    return jax.typeof(x).sharding.spec


def with_spec(x: Array, spec: PartitionSpec, mesh: AbstractMesh) -> Array:
    """Return an array divided over the explicit axes of a mesh."""
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))
