"""Configs from signatures: defaults, types, names, parts, changes from the command line, and construction."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest

from vqjax.errors import UserError
from vqjax.runtime.signature import Call, Kind, Registry, within


@dataclasses.dataclass(frozen=True)
class Decay:
    rate: float = 0.9

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UserError(f"rate must be in [0, 1), got {self.rate}; use 0.9.")


@dataclasses.dataclass(frozen=True)
class Steps:
    every: int
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Penalty:
    weight: float


@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    depth: int = 2
    kind: Literal["plain", "gated"] = "plain"
    sizes: Sequence[int] | None = None
    scale: float | None = None
    label: str = ""
    bias: bool = True
    initializer: Callable = max
    axis_name: str | None = None
    schedule: Decay | Steps | None = dataclasses.field(default_factory=lambda: Decay(0.8))
    clip: Penalty | None = None
    penalties: tuple[Penalty, ...] = ()


SCHEDULES = Registry({"decay": Decay, "steps": Steps})
MODELS = Registry(
    {"model": Model, "other": lambda width, kind="x": (width, kind)},
    {"schedule": SCHEDULES, "clip": Registry({"penalty": Penalty}), "penalties": Registry({"l1": Penalty})},
)


def complete(**arguments):
    return MODELS.defaults("model", width=4, **arguments)


def test_defaults_are_those_of_the_signature():
    assert complete() == {
        "name": "model",
        "width": 4,
        "depth": 2,
        "kind": "plain",
        "sizes": None,
        "scale": None,
        "label": "",
        "bias": True,
        "schedule": {"name": "decay", "rate": 0.8},
        "clip": None,
        "penalties": {},
    }


def test_an_argument_without_a_default_is_in_the_config_and_missing_when_it_is_built():
    config = MODELS.defaults("model")
    assert config["width"] is None
    with pytest.raises(UserError, match=r"^width is missing; it must be an integer\.$"):
        MODELS.build(**config)


@pytest.mark.parametrize("part", ["steps", {"name": "steps"}])
def test_a_part_is_complete_whether_given_by_name_or_by_arguments(part):
    assert complete(schedule=part)["schedule"] == {"name": "steps", "every": None, "rate": 0.5}


def test_a_part_with_one_choice_need_not_be_named():
    assert complete(clip={"weight": 1})["clip"] == {"name": "penalty", "weight": 1.0}


def test_parts_given_as_objects_become_their_arguments():
    config = complete(schedule=Steps(3), penalties=(Penalty(0.5),))
    assert config["schedule"] == {"name": "steps", "every": 3, "rate": 0.5}
    assert config["penalties"] == {"l1": {"weight": 0.5}}


def test_what_is_built_has_the_arguments_of_the_config():
    config = complete(
        sizes=[3, 4], schedule={"name": "steps", "every": 7}, clip={"weight": 2}, penalties={"l1": {"weight": 1}}
    )
    built = MODELS.build(**config)
    assert built == Model(4, sizes=(3, 4), schedule=Steps(7), clip=Penalty(2.0), penalties=(Penalty(1.0),))


def test_what_no_config_can_hold_is_given_when_it_is_built():
    built = MODELS.build(**complete(), initializer=min, axis_name="batch")
    assert (built.initializer, built.axis_name) == (min, "batch")
    assert MODELS.build(name="model", width=4, schedule=Steps(2)).schedule == Steps(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "modle"}, "name='modle' is unknown; did you mean 'model'?"),
        ({"name": None}, "name=None is unknown; use one of 'model', 'other'."),
        ({"widht": 3}, "widht is unknown; did you mean 'width'?"),
        ({"width": 2.5}, "width must be an integer, got 2.5."),
        ({"width": True}, "width must be an integer, got True."),
        ({"width": 2**31}, "width must fit in int32, got 2147483648."),
        ({"scale": float("nan")}, "scale must be a finite number or None, got nan."),
        ({"scale": "much"}, "scale must be a finite number or None, got 'much'."),
        ({"bias": 1}, "bias must be True or False, got 1."),
        ({"bias": None}, "bias must be True or False, got None."),
        ({"label": 3}, "label must be a string, got 3."),
        ({"kind": "gate"}, "kind='gate' is unknown; did you mean 'gated'?"),
        ({"kind": 3}, "kind must be 'plain' or 'gated', got 3."),
        ({"sizes": 3}, "sizes must be integers such as (8, 5) or None, got 3."),
        ({"sizes": (2, 0.5)}, "sizes must be integers such as (8, 5) or None, got (2, 0.5)."),
        ({"schedule": 3}, "schedule must be a dictionary, got 3."),
        ({"schedule": "deacy"}, "schedule.name='deacy' is unknown; did you mean 'decay'?"),
        ({"schedule": {"name": "decay", "rat": 1}}, "schedule.rat is unknown; did you mean 'rate'?"),
        ({"schedule": {"name": "decay", "rate": 1}}, "schedule.rate must be in [0, 1), got 1.0; use 0.9."),
        ({"schedule": {"name": "steps"}}, "schedule.every is missing; it must be an integer."),
        ({"penalties": {"l2": {}}}, "penalties.l2.name='l2' is unknown; use one of 'l1'."),
        ({"penalties": {"l1": {"weight": "x"}}}, "penalties.l1.weight must be a finite number, got 'x'."),
        ({"penalties": 3}, "penalties must be a dictionary, got 3."),
    ],
)
def test_a_mistake_is_refused_by_its_path_with_what_is_allowed(arguments, message):
    with pytest.raises(UserError) as caught:
        MODELS.build(**{"name": "model", "width": 4} | arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("path", "text", "changed"),
    [
        ("width", "8", {"width": 8}),
        ("scale", "1", {"scale": 1.0}),
        ("scale", "1e-3", {"scale": 1e-3}),
        ("scale", "None", {"scale": None}),
        ("sizes", "(8, 5)", {"sizes": (8, 5)}),
        ("sizes", "8,5", {"sizes": (8, 5)}),
        ("sizes", "8", {"sizes": (8,)}),
        ("sizes", "none", {"sizes": None}),
        ("label", "5", {"label": "5"}),
        ("bias", "false", {"bias": False}),
        ("kind", "gated", {"kind": "gated"}),
        ("schedule.rate", "0.1", {"schedule": {"name": "decay", "rate": 0.1}}),
        ("schedule", "None", {"schedule": None}),
        ("clip.weight", "3", {"clip": {"name": "penalty", "weight": 3.0}}),
        ("penalties.l1.weight", "3", {"penalties": {"l1": {"weight": 3.0}}}),
    ],
)
def test_one_argument_is_set_from_the_command_line(path, text, changed):
    assert MODELS.override(complete(), path, text) == complete() | changed


def test_parts_are_turned_off_from_the_command_line():
    on = complete(clip={"weight": 3}, penalties={"l1": {"weight": 3}})
    assert MODELS.override(MODELS.override(on, "clip", "None"), "penalties", "None") == complete()


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("widht", "3", "widht is unknown; did you mean 'width'?"),
        ("width", "many", "width must be an integer, got 'many'."),
        ("width", "2.5", "width must be an integer, got 2.5."),
        ("width", "None", "width must be an integer, got None."),
        ("width.x", "3", "width is not a group; leave out .x."),
        ("bias", "maybe", "bias must be True or False, got 'maybe'."),
        ("scale", "nan", "scale must be a finite number or None, got 'nan'."),
        ("sizes", "(8", "sizes must be integers such as (8, 5) or None, got '(8'."),
        ("kind", "gate", "kind='gate' is unknown; did you mean 'gated'?"),
        ("schedule", "steps", "schedule is a group, got 'steps'; set one of its arguments, such as name."),
        ("schedule.rat", "3", "schedule.rat is unknown; did you mean 'rate'?"),
        ("schedule.every", "3", "schedule.every is unknown; use one of 'rate'."),
        ("penalties.l1", "3", "penalties.l1 is a group, got '3'; set one of its arguments, such as weight."),
        ("penalties.l2.weight", "3", "penalties.l2.name='l2' is unknown; use one of 'l1'."),
        ("name", "modle", "name='modle' is unknown; did you mean 'model'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused_by_its_path(path, text, message):
    with pytest.raises(UserError) as caught:
        MODELS.override(complete(), path, text)
    assert str(caught.value) == message


def test_another_name_brings_its_own_defaults_and_keeps_what_was_changed():
    start = complete(schedule={"name": "decay", "rate": 0.3})
    assert MODELS.override(start, "schedule.name", "steps")["schedule"] == {"name": "steps", "every": None, "rate": 0.3}
    # The default of the one before is not a choice of the user.
    start = complete(schedule={"name": "decay", "rate": 0.9})
    assert MODELS.override(start, "schedule.name", "steps")["schedule"]["rate"] == 0.5
    off = complete(schedule=None)
    assert MODELS.override(off, "schedule.name", "steps")["schedule"] == {"name": "steps", "every": None, "rate": 0.5}


def test_an_argument_of_another_type_is_not_kept():
    class Wide:
        def __init__(self, width: str = "wide", depth: int = 1) -> None: ...

    registry = Registry({"model": Model, "wide": Wide})
    start = registry.defaults("model", width=4, depth=9)
    assert registry.override(start, "name", "wide") == {"name": "wide", "width": "wide", "depth": 9}


def test_numbers_of_numpy_are_numbers_in_a_config():
    config = complete(depth=np.int64(3), scale=np.float32(0.5))
    assert (type(config["depth"]), type(config["scale"])) == (int, float)


def test_fields_that_every_choice_shares_are_not_passed_on():
    @dataclasses.dataclass
    class Shared:
        flip: bool = False

    sources = Registry({"folder": lambda path: path}, key="source", shared=Call(Shared))
    assert "flip" in sources.call("folder").fields


def test_texts_in_a_sequence_are_separated_by_commas():
    kind = Kind.of(Sequence[str])
    assert kind.parse("vq, fsq") == ("vq", "fsq")
    assert kind.parse("") == ()


@pytest.mark.parametrize("annotation", [int, float | None, Literal["a"], Sequence[int | Sequence[int]]])
def test_annotations_that_a_config_can_hold(annotation):
    assert Kind.of(annotation).is_known


@pytest.mark.parametrize("annotation", [Callable, np.ndarray, type(None), Sequence[np.ndarray]])
def test_annotations_that_no_config_can_hold(annotation):
    assert not Kind.of(annotation).is_known


def test_the_place_is_in_front_of_every_message():
    for message, expected in [
        ("decay must be below 1.", "config.decay must be below 1."),
        ("must be below 1.", "config must be below 1."),
        ("='x' is unknown", "config='x' is unknown"),
        ("The codes move twice.", "config: The codes move twice."),
        # Bug: it read as the name of a field.
        ("runs/sonnet contains no checkpoint.", "config: runs/sonnet contains no checkpoint."),
    ]:
        with pytest.raises(UserError) as caught, within("config"):
            raise UserError(message)
        assert str(caught.value) == expected
