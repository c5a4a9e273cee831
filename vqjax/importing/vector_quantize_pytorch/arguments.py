"""The arguments of a class of vector-quantize-pytorch, and what becomes of each here."""

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from vqjax.errors import UserError, did_you_mean
from vqjax.importing.state_dict import StateDict
from vqjax.quantizers.base import Quantizer
from vqjax.quantizers.validation import require

Imported = tuple[Quantizer, dict[str, Any]]
"""A quantizer and its variables, as NumPy arrays."""

Import = Callable[[StateDict, Mapping[str, Any], str], Imported]
"""Function of the entries of one module, of the arguments of its constructor, and of the prefix of these entries in the
whole state dict, which messages show."""

ADVICE = "pass the arguments that the quantizer was trained with in config"

DROPOUT = {"quantize_dropout": False, "quantize_dropout_cutoff_index": 0, "quantize_dropout_multiple_of": 1}
"""The arguments of all residual quantizers about dropped stages."""


class Arguments(NamedTuple):
    """The arguments of a class.

    Attributes:
      kind: Name of the class.
      known: Those that decide what the arrays mean and how training continues, with their defaults.
      ignored: Those that change nothing here: layouts of inputs, devices, how the codebook was started.
      refused: Those that are not imported; all are off by default.
      required: Those that are on by default, and are not imported where they are off.
    """

    kind: str
    known: Mapping[str, Any]
    ignored: Set[str] = frozenset()
    refused: Set[str] = frozenset()
    required: Set[str] = frozenset()

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the known arguments, completed by their defaults.

        Raises:
          UserError: An argument is unknown, or is not imported and on.
        """
        require(isinstance(config, Mapping), "config", config, "a mapping of argument names to values")
        names = self.known.keys() | self.ignored | self.refused | self.required
        for name, value in config.items():
            if name not in names:
                known = did_you_mean(name, names)
                raise UserError(f"config must have arguments of a {self.kind}, got {name!r}; {known}")
            advice = "it is not imported; leave it out to continue without it"
            off = name not in self.refused or not value
            require(off, f"config[{name!r}]", value, "off", advice)
            on = name not in self.required or bool(value)
            require(on, f"config[{name!r}]", value, "on", "without it the class is not imported")
        return {**self.known, **{name: value for name, value in config.items() if name in self.known}}

    def within(self, kind: str, known: Mapping[str, Any], *, refused: frozenset[str] = frozenset()) -> "Arguments":
        """Return the arguments of a class that passes those of this one on to its parts."""
        return self._replace(kind=kind, known={**self.known, **known}, refused=self.refused | refused)


def entries_under(arrays: StateDict, prefix: str) -> StateDict:
    """Return the entries of a submodule, without its prefix."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def entries_beside(arrays: StateDict, prefixes: list[str]) -> StateDict:
    """Return the entries that belong to none of the submodules."""
    return {key: value for key, value in arrays.items() if not key.startswith(tuple(prefixes))}


def nest(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the variables of a quantizer whose parts are submodules ``name_0`` and so on."""
    collections = {collection for variables in parts for collection in variables}
    return {
        collection: {f"{name}_{i}": part[collection] for i, part in enumerate(parts) if collection in part}
        for collection in collections
    }


def merge(variables: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return variables with others added to their collections; empty collections are left out."""
    merged = {name: {**variables.get(name, {}), **others.get(name, {})} for name in variables.keys() | others.keys()}
    return {name: collection for name, collection in merged.items() if collection}


def projection_shapes(outer: int, inner: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the shapes of ``project_in`` and ``project_out``, which exist if the numbers of features differ."""
    if outer == inner:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"project_in.weight": (inner, outer), "project_out.weight": (outer, inner)}
    return shapes | ({"project_in.bias": (inner,), "project_out.bias": (outer,)} if bias else {})


def projections(arrays: StateDict) -> dict[str, Any]:
    """Return the parameters of the projections, if there are any; a missing bias is zero."""
    params = {}
    for name in ("project_in", "project_out"):
        if f"{name}.weight" in arrays:
            kernel = arrays[f"{name}.weight"].T
            bias = arrays.get(f"{name}.bias", 0 * kernel[0])
            params |= {f"{name}_kernel": kernel, f"{name}_bias": bias}
    return params
