"""Modules that compute with automatic axes on meshes with explicit ones, see :mod:`vqjax.functional.sharding`."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.core import lift
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import PyTree

from vqjax.functional.sharding import (
    automatic,
    divided_like,
    explicit_mesh,
    spec_of,
    with_spec,
    without_axes,
)


class AutomaticAxes(nn.Module):
    """Base class of modules that leave the division of their work over devices to the compiler.

    Attributes:
      automatic_methods: Names of the methods that do, see :func:`automatic_axes`; overridden ones included.
    """

    automatic_methods: ClassVar[tuple[str, ...]] = ("__call__",)

    def __init_subclass__(cls, **options: Any) -> None:
        for name in cls.automatic_methods:
            if name in vars(cls):
                setattr(cls, name, automatic_axes(vars(cls)[name]))
        super().__init_subclass__(**options)


def automatic_axes[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of a module, or a function of a module, to leave the division of its work to the compiler.

    Results are divided over devices as the leading axes of the first argument are, variables as they were before, and
    new ones not at all. Without explicit axes, the method is called as it is.

    Args:
      method: Takes the module and arrays.

    Returns:
      The method.
    """

    @functools.wraps(method)
    def decorated(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mesh = None if module.scope is None else explicit_mesh(args, kwargs, module.variables)
        if mesh is None:
            return method(module, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        return nn.transforms.lift_direct_transform(functools.partial(_apply, mesh), (method,), module, *args, **kwargs)

    return decorated


def _apply(mesh: AbstractMesh, function: Callable, scopes: PyTree, *args: Any, **kwargs: Any) -> Any:
    """Apply a function of a module's scopes."""

    def inner(scopes_of: Callable, variables_of: Callable, variables: PyTree, keys: PyTree, *args: Any, **kwargs: Any):
        model = next((x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, jax.Array)), None)
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        specs = {path: spec_of(x) for path, x in leaves if isinstance(x, jax.Array)}
        variables, keys, args, kwargs = without_axes((variables, keys, args, kwargs), mesh)
        with automatic(mesh):
            scopes = scopes_of(variables, keys)
            results = function(scopes, *args, **kwargs)
            updated = variables_of(scopes)

        def as_before(path: tuple, x: Any) -> Any:
            return with_spec(x, specs.get(path, PartitionSpec()), mesh) if isinstance(x, jax.Array) else x

        return divided_like(model, results, mesh), jax.tree_util.tree_map_with_path(as_before, updated)

    lifted = lift.pack(inner, (True,), (True,), (True,), enable_kwargs=True, name="automatic_axes")
    return lifted(scopes, *args, **kwargs)
