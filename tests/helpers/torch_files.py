"""Files like those of ``torch.save``, written without PyTorch, so that they may also hold what it would never write."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

TYPES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


class Name(NamedTuple):
    """A class or function, by its name alone."""

    module: str
    name: str


class Call(NamedTuple):
    """The object that a call makes, with its state and its items."""

    function: Any
    arguments: tuple = ()
    state: Any = None
    new: bool = False
    items: dict | None = None


class Raw(NamedTuple):
    """Opcodes as they are."""

    code: bytes


class Stored(NamedTuple):
    """A tensor of PyTorch with any fields; those of the same numbers share a storage."""

    numbers: np.ndarray
    shape: tuple
    strides: tuple
    offset: int = 0
    length: int | None = None


class Pickler(pickle._Pickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []

    def _name(self, name: Name) -> None:
        self.write(b"c" + name.module.encode() + b"\n" + name.name.encode() + b"\n")

    def _call(self, call: Call) -> None:
        self.save(call.function)
        self.save(tuple(call.arguments))
        self.write(pickle.NEWOBJ if call.new else pickle.REDUCE)
        for item in (call.items or {}).items():
            for part in item:
                self.save(part)
            self.write(pickle.SETITEM)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    def _raw(self, raw: Raw) -> None:
        self.write(raw.code)

    def _array(self, array: np.ndarray) -> None:
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self._stored(Stored(array, array.shape, strides))

    def _stored(self, stored: Stored) -> None:
        self.save(Name("torch._utils", "_rebuild_tensor_v2"))
        kind = Name("torch", f"{TYPES[str(stored.numbers.dtype)]}Storage")
        length = stored.numbers.size if stored.length is None else stored.length
        numbers = [id(numbers) for numbers in self.storages]
        if id(stored.numbers) not in numbers:
            self.storages.append(stored.numbers)
            numbers.append(id(stored.numbers))
        self.write(pickle.MARK)
        self.save(("storage", kind, str(numbers.index(id(stored.numbers))), "cpu", length))
        self.write(pickle.BINPERSID)
        for part in (stored.offset, stored.shape, stored.strides, False, Call(Name("collections", "OrderedDict"))):
            self.save(part)
        self.write(pickle.TUPLE + pickle.REDUCE)

    dispatch = pickle._Pickler.dispatch | {
        Name: _name,
        Call: _call,
        Raw: _raw,
        np.ndarray: _array,
        Stored: _stored,
    }


def write_archive(path: Path, objects: Any, **files: bytes) -> Path:
    """Write today's format; further files replace those of the same name, with underscores for slashes."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(objects)
    entries = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{i}": storage.tobytes() for i, storage in enumerate(pickler.storages)}
    entries |= {name.replace("data_", "data/"): data for name, data in files.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


def bfloat16(*values: float) -> np.ndarray:
    return np.asarray(values, jnp.bfloat16)
