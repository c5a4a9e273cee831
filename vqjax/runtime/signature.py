"""Configs from signatures: the arguments of classes and functions, with the types and defaults of their definitions.

A config names a callable and gives its arguments, such as ``{"name": "fsq", "levels": (8, 5, 5)}``. Arguments that are
objects themselves (the parts of a callable), such as the codebook of a quantizer, are dictionaries of this form too.
"""

import ast
import contextlib
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vqjax.errors import UserError, did_you_mean

REQUIRED = inspect.Parameter.empty
"""Sentinel: marks an argument without a default."""

_WORDS = {bool: "True or False", int: "an integer", float: "a finite number", str: "a string"}
_PLURALS = {int: "integers such as (8, 5)", float: "numbers such as (0.5, 2)", str: "strings such as a,b"}

# The trainer runs under `jit` on global batches, without a mapped axis, and passes `train` in each call.
_NOT_CONFIGURED = frozenset({"axis_name", "train"})


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that an annotation allows in a config.

    Attributes:
      types: Those of ``bool``, ``int``, ``float``, ``str`` and ``tuple`` that the annotation names; values of other
        types cannot be written on a command line.
      choices: The strings of a ``Literal``.
      optional: Allow None.
      items: The kind of a tuple's items.

    Example:
      >>> str(Kind.of(float | None)), str(Kind.of(Sequence[int]))
      ('a finite number or None', 'integers such as (8, 5)')
      >>> Kind.of(float | None).parse("0.5"), Kind.of(Sequence[int]).parse("8,5")
      (0.5, (8, 5))
    """

    types: frozenset[type] = frozenset()
    choices: tuple[str, ...] = ()
    optional: bool = False
    items: "Kind | None" = None

    @classmethod
    def of(cls, annotation: Any) -> "Kind":
        """Return the kind of an annotation."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if annotation in (None, type(None)):
            return cls(optional=True)
        if annotation in (bool, int, float, str):
            return cls(frozenset({annotation}))
        if annotation is Path:
            return cls(frozenset({str}))
        if origin is Literal:
            return cls(choices=tuple(choice for choice in arguments if choice is not None), optional=None in arguments)
        if origin in (typing.Union, types.UnionType):
            kinds = [cls.of(argument) for argument in arguments]
            return cls(
                frozenset().union(*(kind.types for kind in kinds)),
                sum((kind.choices for kind in kinds), ()),
                any(kind.optional for kind in kinds),
                next((kind.items for kind in kinds if kind.items), None),
            )
        if isinstance(origin, type) and issubclass(origin, Sequence) and cls.of(arguments[0]).is_known:
            return cls(frozenset({tuple}), items=cls.of(arguments[0]))
        return cls()

    @property
    def is_known(self) -> bool:
        """Whether a config can hold a value of this kind other than None."""
        return bool(self.types or self.choices)

    def check(self, value: Any) -> Any:
        """Check a value and convert it to the annotated type: integers to floats if expected, lists to tuples.

        Raises:
          UserError: The value is of a different kind; the message begins with "must", "is" or "=".
        """
        if isinstance(value, np.generic):
            value = value.item()
        # A bool is an int in Python, and an int is not a float.
        kind = type(value)
        if kind is int and int not in self.types and float in self.types:
            value, kind = float(value), float
        if kind is list:
            value, kind = tuple(value), tuple
        if not ((value is None and self.optional) or kind in self.types or (kind is str and value in self.choices)):
            if kind is str and self.choices:
                raise UserError(f"={_shown(value)} is unknown; {did_you_mean(value, self.choices)}")
            raise UserError(f"must be {self}, got {_shown(value)}.")
        if kind is float and not math.isfinite(value):
            raise UserError(f"must be {self}, got {_shown(value)}.")
        # Integers are int32 on a device.
        if kind is int and abs(value) >= 2**31:
            raise UserError(f"must fit in int32, got {_shown(value)}.")
        if kind is not tuple:
            return value
        try:
            return tuple(self.items.check(item) for item in value)
        except UserError as error:
            raise UserError(f"must be {self}, got {_shown(value)}.") from error

    def parse(self, text: str) -> Any:
        """Read a value from the command line; ``None`` disables an argument that is optional.

        Raises:
          UserError: As in ``check``.
        """
        if self.optional and text.lower() == "none":
            return None
        if bool in self.types and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if str in self.types or self.choices:
            return self.check(text)
        if self.items and str in self.items.types:
            return self.check([item.strip() for item in text.split(",") if item.strip()])
        value = text
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(text.strip())
        # A single integer needs no parentheses.
        one = tuple in self.types and int not in self.types and type(value) is int
        return self.check((value,) if one else value)

    def __str__(self) -> str:
        words = [_WORDS[kind] for kind in (bool, int, float, str) if kind in self.types]
        if self.items:
            words.append(next((_PLURALS[kind] for kind in (int, float, str) if kind in self.items.types), "a sequence"))
        return " or ".join([*words, *map(repr, self.choices), *["None"] * self.optional])


@dataclasses.dataclass(frozen=True)
class Field:
    """An argument that a config can hold.

    Attributes:
      kind: The values that it may have.
      default: Its default, or ``REQUIRED``.
      part: Registry that builds its values, if they are objects.
      several: Whether its value is a tuple of such objects, which a config holds as a dictionary from their names to
        their arguments.
    """

    kind: Kind
    default: Any
    part: "Registry | None" = None
    several: bool = False

    @property
    def can_be_off(self) -> bool:
        """Whether None is a value of the argument."""
        return self.kind.optional or self.default is None

    def complete(self, value: Any) -> Any:
        """Return a checked value, with the defaults of its parts, or None if a required value is still missing."""
        if value is None and (self.default is REQUIRED or (self.part is not None and self.can_be_off)):
            return None
        if self.part is None:
            return self.kind.check(value)
        if not self.several:
            return self.part.complete(value)
        if isinstance(value, tuple | list):
            completed = map(self.part.complete, value)
            return {arguments.pop(self.part.key): arguments for arguments in completed}
        several = {}
        for name, arguments in _items(value).items():
            with within(name):
                several[name] = self.part.call(name).defaults(**_items(arguments))
        return several

    def build(self, value: Any) -> Any:
        """Return the argument itself from its value in a complete config."""
        if self.part is None or value is None:
            return value
        if not self.several:
            return self.part.build(**value)
        built = []
        for name, arguments in value.items():
            with within(name):
                built.append(self.part.call(name).build(**arguments))
        return tuple(built)

    def override(self, value: Any, path: str, text: str) -> Any:
        """Return the value after ``path=text`` within it; an empty path means the value itself."""
        if self.part is None:
            if path:
                raise UserError(f"is not a group; leave out .{path}.")
            return self.kind.parse(text)
        if not path and text.lower() == "none" and (self.can_be_off or self.several):
            return {} if self.several else None
        if not path:
            raise _is_a_group(text, self.part.key)
        if not self.several:
            return self.part.override(value or {}, path, text)
        name, _, argument = path.partition(".")
        with within(name):
            call = self.part.call(name)
            if not argument and text.lower() == "none":
                return {other: arguments for other, arguments in value.items() if other != name}
            if not argument:
                raise _is_a_group(text, next(iter(call.fields)))
            return value | {name: call.override(value.get(name, {}), argument, text)}


class Call:
    """A class or function as a group of a config.

    Args:
      function: A class or function with annotated parameters. A config can hold those whose types ``Kind`` knows;
        others, such as arrays, functions and modules, can only be given to ``build``.
      parts: Registries that build the arguments that are objects, by the name of the argument.

    Example:
      >>> def adam(learning_rate: float, b1: float = 0.9, clip_norm: float | None = None): ...
      >>> group = Call(adam)
      >>> config = group.defaults(learning_rate=1e-3)
      >>> config
      {'learning_rate': 0.001, 'b1': 0.9, 'clip_norm': None}
      >>> group.override(config, "clip_norm", "1")
      {'learning_rate': 0.001, 'b1': 0.9, 'clip_norm': 1.0}
      >>> group.defaults(learning_rat=1e-3)
      Traceback (most recent call last):
      vqjax.errors.UserError: learning_rat is unknown; did you mean 'learning_rate'?
    """

    def __init__(self, function: Callable[..., Any], parts: "Mapping[str, Registry] | None" = None) -> None:
        self.function = function
        self.fields: dict[str, Field] = {}
        self.others: dict[str, Any] = {}  # the annotations of the arguments that no config can hold
        for name, annotation, default in _parameters(function):
            kind = Kind.of(annotation)
            if parts and name in parts:
                self.fields[name] = Field(kind, default, parts[name], several=isinstance(default, tuple))
            elif kind.is_known and name not in _NOT_CONFIGURED:
                self.fields[name] = Field(kind, default)
            else:
                self.others[name] = annotation

    def defaults(self, **arguments: Any) -> dict[str, Any]:
        """Return all arguments, those that are given and the defaults of the others.

        Args:
          **arguments: Values that differ from the defaults. An argument that is an object is given by its name, by a
            dictionary with ``name`` and arguments, or as None if that is allowed.

        Returns:
          The arguments by name; those without a value and without a default are None.

        Raises:
          UserError: A name is unknown, or a value is not of its argument's type. The message begins with the argument,
            in dotted form if it belongs to a part.
        """
        for name in arguments:
            self._field(name)
        complete = {}
        for name, field in self.fields.items():
            value = arguments.get(name, field.default)
            with within(name):
                complete[name] = field.complete(None if value is REQUIRED else value)
        return complete

    def build(self, **arguments: Any) -> Any:
        """Call the function.

        Args:
          **arguments: The arguments in a config, and any others that the function takes. Omitted arguments take their
            defaults.

        Returns:
          What the function returns.

        Raises:
          UserError: As in ``defaults``; also if an argument is missing, or the function rejects its arguments.
        """
        given = {name: value for name, value in arguments.items() if name in self.others or self._is_built(name, value)}
        config = self.defaults(**{name: value for name, value in arguments.items() if name not in given})
        self.check_given(config | given)
        for name in config.keys() - given.keys():
            with within(name):
                given[name] = self.fields[name].build(config[name])
        return self.function(**given)

    def check_given(self, config: Any) -> None:
        """Refuse a config that leaves out an argument without a default.

        Raises:
          UserError: An argument is missing; the message names the first one.
        """
        for name, field in self.fields.items():
            if config[name] is None and not field.can_be_off:
                raise UserError(f"{name} is missing; it must be {field.kind if field.part is None else field.part}.")

    def override(self, config: Any, path: str, text: str) -> dict[str, Any]:
        """Set one argument from the command line.

        Args:
          config: All arguments.
          path: The name of the argument, dotted if it belongs to a part: ``"codebook.decay"``.
          text: The value; ``None`` disables an argument that is optional.

        Returns:
          The arguments with that value.

        Raises:
          UserError: A name is unknown, or the value is not of the argument's type.
        """
        name, _, rest = path.partition(".")
        field, complete = self._field(name), self.defaults(**_items(config))
        with within(name):
            return complete | {name: field.override(complete[name], rest, text)}

    def _is_built(self, name: str, value: Any) -> bool:
        """Whether the value of a part has already been built."""
        part = name in self.fields and self.fields[name].part
        in_config = (
            value is None or isinstance(value, bool | int | float | str | tuple | list) or hasattr(value, "items")
        )
        return bool(part) and not in_config

    def _field(self, name: str) -> Field:
        if name not in self.fields:
            raise UserError(f"{name} is unknown; {did_you_mean(name, self.fields)}")
        return self.fields[name]


class Registry(dict[str, Callable[..., Any]]):
    """Classes and functions by the names under which configs choose one of them.

    Args:
      callables: Classes and functions by name.
      parts: Registries that build the arguments that are objects, by the name of the argument.
      key: Name of the field that holds the choice.
      shared: Fields that every choice has besides its own arguments; they are not passed to the callable.

    Example:
      >>> def mean(): ...
      >>> def smooth(window: int, amount: float = 0.5): ...
      >>> filters = Registry({"mean": mean, "smooth": smooth})
      >>> config = filters.defaults("smooth", window=3)
      >>> config
      {'name': 'smooth', 'window': 3, 'amount': 0.5}
      >>> filters.override(config, "name", "mean")
      {'name': 'mean'}
      >>> filters.defaults("smoth")
      Traceback (most recent call last):
      vqjax.errors.UserError: name='smoth' is unknown; did you mean 'smooth'?
    """

    def __init__(
        self,
        callables: Mapping[str, Callable[..., Any]],
        parts: "Mapping[str, Registry] | None" = None,
        key: str = "name",
        shared: Call | None = None,
    ) -> None:
        super().__init__(callables)
        self.parts, self.key, self.shared = parts, key, shared

    def call(self, name: Any) -> Call:
        """Return the group of arguments of one of the callables.

        Raises:
          UserError: The name is unknown.
        """
        if not isinstance(name, str) or name not in self:
            raise UserError(f"{self.key}={_shown(name)} is unknown; {did_you_mean(str(name), self)}")
        call = Call(self[name], self.parts)
        if self.shared is not None:
            call.fields |= self.shared.fields
        return call

    def defaults(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Return the choice and its arguments: see ``Call.defaults``."""
        return {self.key: name} | self.call(name).defaults(**arguments)

    def build(self, /, **config: Any) -> Any:
        """Build the object that a config describes: see ``Call.build``."""
        name, arguments = self._split(config)
        return self.call(name).build(**arguments)

    def override(self, config: Any, path: str, text: str) -> dict[str, Any]:
        """Set one argument from the command line: see ``Call.override``.

        When the choice changes, arguments take the new choice's defaults, except that an argument that both choices
        have keeps a value that differs from the old choice's default.
        """
        name, arguments = self._split(config)
        if path != self.key:
            return {self.key: name} | self.call(name).override(arguments, path, text)
        chosen = self.call(text)
        before = self.call(name).defaults() if name is not None else {}
        kept = {}
        for argument, value in arguments.items():
            if argument in chosen.fields and value != before.get(argument):
                # An argument of the same name may have a different type in the new choice: then it is dropped.
                with contextlib.suppress(UserError):
                    kept[argument] = chosen.defaults(**{argument: value})[argument]
        return self.defaults(text, **kept)

    def complete(self, value: Any) -> dict[str, Any]:
        """Return the choice and all its arguments from a name, a dictionary, or an object that one of them made."""
        if isinstance(value, str):
            return self.defaults(value)
        if type(value) in self.values():
            name = next(name for name, function in self.items() if function is type(value))
            return self.defaults(name, **{field: getattr(value, field) for field in self.call(name).fields})
        name, arguments = self._split(value)
        return self.defaults(name, **arguments)

    def __str__(self) -> str:
        return f"a dictionary with {self.key}={' or '.join(map(repr, self))}"

    def _split(self, config: Any) -> tuple[Any, dict[str, Any]]:
        arguments = _items(config)
        # If there is only one choice, its name may be omitted.
        return arguments.pop(self.key, next(iter(self)) if len(self) == 1 else None), arguments


@contextlib.contextmanager
def within(path: str) -> Iterator[None]:
    """Prefix the messages of errors with a path in the config.

    Args:
      path: The dotted name of a group or an argument.

    Raises:
      UserError: Any that the block raises, with ``path`` in front of its message.

    Example:
      >>> with within("config.quantizer"):
      ...     raise UserError("num_codes must be at least 1, got 0.")
      Traceback (most recent call last):
      vqjax.errors.UserError: config.quantizer.num_codes must be at least 1, got 0.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
        # Messages of constructors begin with the argument's name; those of checks of a value, with "must", "is" or "=".
        first = re.match(r"=|must |is |(?=[a-z_][\w.\[\]]*( must | is |=|: ))", message)
        joint = ": " if first is None else {"=": "", "": "."}.get(first[0], " ")
        raise UserError(f"{path}{joint}{message}") from error


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and default of each parameter."""
    parameters = inspect.signature(function).parameters
    factories = {}
    if dataclasses.is_dataclass(function):
        factories = {field.name: field.default_factory for field in dataclasses.fields(function)}
    # Every Flax module has these two besides its own fields.
    inherited = ("parent", "name") if "parent" in parameters else ()
    for name, parameter in parameters.items():
        if name not in inherited and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            factory = factories.get(name, dataclasses.MISSING)
            yield name, parameter.annotation, parameter.default if factory is dataclasses.MISSING else factory()


def _items(value: Any) -> dict[str, Any]:
    """The items of a dict or a ConfigDict."""
    if not hasattr(value, "items"):
        raise UserError(f"must be a dictionary, got {_shown(value)}.")
    return dict(value.items())


def _is_a_group(text: str, argument: str) -> UserError:
    return UserError(f"is a group, got {text!r}; set one of its arguments, such as {argument}.")


def _shown(value: Any) -> str:
    """A value on one line of bounded length."""
    return textwrap.shorten(repr(value), 80, placeholder=" ...")
