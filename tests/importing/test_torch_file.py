"""Files of ``torch.save``: their tensors arrive, and nothing in them runs."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from helpers.torch_files import Call, Name, Raw, Stored, bfloat16, write_archive
from vqjax import UserError
from vqjax.importing.state_dict import read_state_dict
from vqjax.importing.torch_file import read_torch_file

# Written by PyTorch 2.13 (tests/parity/test_torch_file.py), with objects of classes that exist nowhere.
RECORDED = Path(__file__).parent / "torch_files"


@pytest.mark.parametrize("name", ["lightning.ckpt", "legacy.pth"])
def test_a_file_of_pytorch_is_read(name):
    state = read_state_dict(RECORDED / name)
    assert sorted(state) == ["bfloat16", "bias", "half", "steps", "tied", "transposed", "weight"]
    weight = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    np.testing.assert_array_equal(state["weight"], weight)
    np.testing.assert_array_equal(state["transposed"], weight.T)
    np.testing.assert_array_equal(state["tied"], weight[1])
    np.testing.assert_array_equal(state["bias"], np.zeros((0,)))
    np.testing.assert_array_equal(state["half"], np.float32([1.5, -2]))
    np.testing.assert_array_equal(state["bfloat16"], np.float32([3.0, -0.25]))
    assert state["steps"] == 7
    assert state["half"].dtype == state["bfloat16"].dtype == np.float32


@pytest.mark.parametrize("place", ["ema", "model", "state_dict", None])
def test_where_the_state_dict_is(tmp_path, place):
    state = {"weight": np.ones((2, 2), np.float32)}
    path = write_archive(tmp_path / "x.pt", state if place is None else {place: state, "steps": 3})
    np.testing.assert_array_equal(read_torch_file(path)["weight"], np.ones((2, 2)))


def test_tensors_beside_the_state_dict_are_no_weights(tmp_path):
    """Bug: the state of random numbers made a state dict of the whole file."""
    state, random = {"weight": np.ones(1, np.float32)}, np.zeros(3, np.float32)
    for objects in ({"model": state, "rng_state": random}, {"ema": {"decay": random, "shadow": state}, "model": state}):
        assert read_torch_file(write_archive(tmp_path / "x.pt", objects)).keys() == {"weight"}


def test_tensors_that_share_a_storage_share_memory(tmp_path):
    """Bug: each of them read, and kept, all of it."""
    whole = np.arange(12, dtype=np.float32)
    parts = {str(i): Stored(whole, (3,), (1,), offset=3 * i) for i in range(4)}
    read = read_torch_file(write_archive(tmp_path / "flat.pt", parts))
    np.testing.assert_array_equal(np.concatenate([read[str(i)] for i in range(4)]), whole)
    assert read["1"].ctypes.data - read["0"].ctypes.data == read["0"].nbytes


def test_the_average_comes_first(tmp_path):
    objects = {"model": {"weight": np.zeros(1, np.float32)}, "ema": {"weight": np.ones(1, np.float32)}}
    assert read_torch_file(write_archive(tmp_path / "x.pt", objects))["weight"] == 1


def test_a_program_of_torchscript_is_refused_by_what_it_is(tmp_path):
    """As which the network of the Fréchet video distance is often published."""
    path = write_archive(tmp_path / "i3d_torchscript.pt", {"weight": np.ones(1, np.float32)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/__torch__.py", "def forward(self): ...")
    with pytest.raises(UserError, match="it is a program of TorchScript, of which nothing is run, and lacks a state"):
        read_torch_file(path)


def marker(tmp_path):
    return f"touch {tmp_path / 'ran'}"


def attacks(tmp_path):
    """Objects that run a command where an unpickler resolves names."""
    system, command = Name("os", "system"), marker(tmp_path)
    evaluate = Name("builtins", "eval")
    python = f"__import__('os').system({command!r})"
    inner = pickle.dumps(Innocent(command))
    namespace = Call(Name("argparse", "Namespace"), new=True, state={"__class__": system, "run": system})
    return {
        "reduce": Call(system, (command,)),
        "eval": Call(evaluate, (python,)),
        "nested": Call(Name("pickle", "loads"), (inner,)),
        "in arguments": Call(Name("collections", "OrderedDict"), ([("a", Call(system, (command,)))],)),
        "getattr": Call(Call(Name("builtins", "getattr"), (Name("os", "path"), "os")), (command,)),
        "dotted": Call(Name("vqjax.importing.torch_file", "pickle.loads"), (inner,)),
        "state": Call(Name("torch.nn", "Module"), new=True, state={"hook": Call(system, (command,))}),
        "state that is a class": namespace,
        "setattr of a slot": Call(Name("x", "X"), new=True, state=(None, {"__setitem__": system})),
        "items": Call(Name("x", "X"), new=True, items={"a": Call(system, (command,))}),
        "inst": Raw(b"(S'" + command.encode() + b"'\nios\nsystem\n"),
        "obj": Raw(b"(cos\nsystem\nS'" + command.encode() + b"'\no"),
        "partial": Call(Call(Name("functools", "partial"), (system, command))),
        "storage": Call(Name("torch.storage", "_load_from_bytes"), (inner,)),
        "buffer": Raw(pickle.BYTEARRAY8 + (2**30).to_bytes(8, "little")),
        "numpy": Call(Name("numpy", "load"), ("x.npy", None, True)),
    }


class Innocent:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_the_commands_run_in_an_ordinary_unpickler(tmp_path):
    pickle.loads(pickle.dumps(Innocent(marker(tmp_path))))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", attacks(Path()))
def test_nothing_in_a_file_runs(tmp_path, name):
    attack = attacks(tmp_path)[name]
    state = {"weight": np.ones(2, np.float32)}
    for i, objects in enumerate([{"callbacks": attack, "state_dict": state}, {"state_dict": state | {"a": attack}}]):
        path = write_archive(tmp_path / f"{i}.ckpt", objects)
        try:
            np.testing.assert_array_equal(read_torch_file(path)["weight"], np.ones(2))
        except UserError as error:
            # A call of what a stand-in returned; the rest of the file cannot be trusted either.
            assert re.fullmatch(".* cannot be read .*", str(error))  # noqa: PT017
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [Name("torch._utils", "_rebuild_tensor_v2"), Name("x", "X"), Name("collections", "OrderedDict"), {"a": 1}],
    ids=["function", "class", "ordered", "dict"],
)
@pytest.mark.parametrize("state", [{"__call__": 1, "update": 2}, (None, {"_call": 3, "__setstate__": 4})])
def test_a_file_changes_nothing_that_the_next_one_uses(tmp_path, target, state):
    build = {"callbacks": [target, Raw(pickle.dumps(state, 2)[2:-1] + b"b0")]}
    tampered = write_archive(tmp_path / "tampered.ckpt", build | {"state_dict": {"weight": np.ones(2, np.float32)}})
    try:
        read_torch_file(tampered)
    except UserError as error:
        assert "cannot be read" in str(error)  # noqa: PT017
    state = read_torch_file(RECORDED / "lightning.ckpt")
    np.testing.assert_array_equal(state["tied"], state["weight"][1])


BF16 = bfloat16(1, 2, 3)


@pytest.mark.parametrize(
    ("objects", "files", "message"),
    [
        ({"a": Stored(BF16, (4,), (1,))}, {}, "reaches out of its 3 stored numbers"),
        ({"a": Stored(BF16, (2,), (2,), offset=1)}, {}, "reaches out of its 3 stored numbers"),
        ({"a": Stored(BF16, (2,), (-1,))}, {}, r"has the shape \(2,\) and the strides \(-1,\)"),
        ({"a": Stored(BF16, (2,), (1,), offset=-1)}, {}, "has the shape"),
        ({"a": Stored(BF16, (2, 1), (1,))}, {}, "has the shape"),
        ({"a": Stored(BF16, (2.0,), (1,))}, {}, "has the shape"),
        ({"a": Stored(BF16, (9**9, 9**9), (0, 0))}, {}, "reaches out of its 3 stored numbers"),
        ({"a": Stored(BF16, (3,), (1,), length=4)}, {}, "must have 4 numbers of bfloat16, but has 6 bytes"),
        ({"a": Stored(BF16, (3,), (1,), length=-3)}, {}, "must have -3 numbers"),
        ({"a": BF16}, {"data_0": b"12345"}, "must have 3 numbers of bfloat16, but has 5 bytes"),
        ({"a": BF16}, {"byteorder": b"big"}, "big-endian"),
        ({"a": BF16}, {"data.pkl": b""}, "cannot be read"),
        ({"a": BF16}, {"data.pkl": b"\x80\x02r\xff\xff\xff\x7f."}, "cannot be read"),
        ({"a": BF16}, {"data.pkl": b"\x80\x02\x82\x01."}, "names the extension 1"),
        ({"a": BF16}, {"data.pkl": b"\x80\x02}q\x00h\x00h\x00s."}, "cannot be read"),
        ([1, 2], {}, "must hold a state dict, .* got list"),
        ({"epoch": 3, "weights": 1}, {}, r"must hold a state dict, .* got \['epoch', 'weights'\]"),
        ({"a": BF16, "b": Call(Name("x", "X"))}, {}, r"arrays\['b'\] must be a NumPy array of numbers, got StandIn"),
    ],
)
def test_damaged_files_end_in_one_line(tmp_path, objects, files, message):
    path = write_archive(tmp_path / "x.ckpt", objects, **files)
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_archives_of_something_else_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    with pytest.raises(UserError, match=r"zip archive with 0 files data.pkl"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ckpt", "text")
    with pytest.raises(UserError, match=r"unpack it, and pass the model.ckpt in it"):
        read_state_dict(path)
    write_archive(path, {"a": BF16})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"archive/data.pkl is compressed"):
        read_state_dict(tmp_path / "y.pt")


@pytest.mark.parametrize("name", ["lightning.ckpt", "legacy.pth"])
@hypothesis.given(data=st.data())
def test_any_damage_is_a_user_error_or_harmless(tmp_path, name, data):
    intact = (RECORDED / name).read_bytes()
    if data.draw(st.booleans()):
        damaged = intact[: data.draw(st.integers(16, len(intact) - 1))]
    else:
        damaged = bytearray(intact)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(16, len(intact) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(damaged)
    try:
        read_state_dict(tmp_path / name)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
