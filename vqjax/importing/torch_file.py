"""Files of ``torch.save``, read without PyTorch and without running anything that is in them."""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from vqjax.errors import UserError, one_line

# Of the legacy format, which has no archive around its pickles.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class StandIn:
    """What any object of a class that is not known becomes; it keeps nothing and does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __new__(cls, *arguments: Any, **options: Any) -> "StandIn":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class Tensor(NamedTuple):
    """A tensor whose numbers are still in the file.

    Attributes:
      storage: Key of the storage that holds them.
      dtype: Their dtype.
      length: Numbers in the storage.
      offset: Place of the first one.
      shape: Shape of the tensor.
      strides: Numbers to skip along each axis.
    """

    storage: str
    dtype: np.dtype
    length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tensor from all numbers of its storage.

        Raises:
          ValueError: It reaches out of them.
        """
        counts = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"a tensor has the shape {self.shape} and the strides {self.strides}")
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        # Repeated numbers (a stride of zero) could make any size out of a small file.
        if math.prod(self.shape) > len(numbers) or (0 not in self.shape and last >= len(numbers)):
            raise ValueError(f"a tensor of shape {self.shape} reaches out of its {len(numbers)} stored numbers")
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    length: int


class _Dict(dict):
    """An ordered dictionary, without the attributes that PyTorch hangs on it."""

    def __setstate__(self, state: Any) -> None: ...


class NumpyArray:
    """What an array of NumPy among the objects becomes; ``value`` is the array, None if it does not hold numbers."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        if isinstance(dtype, _NumpyDtype) and dtype.value is not None and isinstance(data, bytes):
            numbers = np.frombuffer(data, dtype.value)
            self.value = numbers.reshape(shape, order="F" if by_column else "C")


class _NumpyDtype:
    """A dtype of NumPy, None unless it is of little-endian numbers."""

    def __init__(self, name: Any, *others: Any) -> None:
        self.value = np.dtype(name) if re.fullmatch(r"[fiub]\d{1,2}", str(name)) else None

    def __setstate__(self, state: Any) -> None:
        if state[1] not in "<|=":
            self.value = None


class _Function:
    """A function that a file may call; a fresh instance for each, so that nothing that is shared can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *others: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return Tensor(*storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *others: Any) -> Any:
    return data


def _bytes(text: Any, *others: Any) -> bytes:
    return str(text).encode("latin1")


_FUNCTIONS = {"_rebuild_tensor": _tensor, "_rebuild_tensor_v2": _tensor, "_rebuild_parameter": _parameter}
_OTHERS = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _NumpyDtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: NumpyArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: NumpyArray(),
}


# The Python class, as the one in C allots memory for any number in the file.
class _Unpickler(pickle._Unpickler):
    """An unpickler to which every name is a stand-in, but for what makes tensors: nothing is imported or called."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            # Not the dtype, whose state a file might set.
            return name
        if module == "torch._utils" and name in _FUNCTIONS:
            return _Function(_FUNCTIONS[name])
        if (module, name) in _OTHERS:
            return _Function(_OTHERS[module, name])
        return StandIn

    def _refused(self) -> NoReturn:
        raise pickle.UnpicklingError("it holds buffers, which torch.save does not write")

    # Python's own take as much memory as the file says, and no tensor needs them.
    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: _refused,
        pickle.NEXT_BUFFER[0]: _refused,
        pickle.READONLY_BUFFER[0]: _refused,
    }

    def get_extension(self, code: int) -> NoReturn:
        # The registry of copyreg holds real classes.
        raise pickle.UnpicklingError(f"it names the extension {code}")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, name, key, _, length, *view = identity
        if kind != "storage" or name not in _STORAGES or type(length) is not int or any(view):
            raise pickle.UnpicklingError(f"it has the storage {identity!r:.80}")
        return _Storage(str(key), np.dtype(_STORAGES[name]), length)


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read the state dict in a file of ``torch.save``, without importing or calling anything that the file names.

    Objects of other libraries, such as the callbacks in a checkpoint of PyTorch Lightning, are left out.

    Args:
      path: A file in the format of today, a zip archive, or in that before PyTorch 1.6. It holds a state dict, or a
        dictionary with one as ``ema``, ``model`` or ``state_dict``; the first of these that is there is read.

    Returns:
      Arrays by name, and whatever else the state dict holds.

    Raises:
      UserError: The file is damaged, or holds no state dict.
    """
    with _damage(path), path.open("rb") as file:
        content = _Archive(file) if zipfile.is_zipfile(file) else _Legacy(file)
        state = _state_dict(content.objects, path)
        return {key: _array_of(value, content) for key, value in state.items()}


def _array_of(value: Any, content: "_Archive | _Legacy") -> Any:
    if isinstance(value, Tensor):
        return content.array(value)
    return value.value if isinstance(value, NumpyArray) else value


def is_torch_file(path: Path) -> bool:
    """Whether a file begins like one of ``torch.save``."""
    with path.open("rb") as file:
        start = file.read(16)
    return start.startswith((b"PK\x03\x04", pickle.dumps(_MAGIC, 2)))


class _Archive:
    """The zip archive of today's format: a pickle, and each storage in a file of its own."""

    def __init__(self, file: Any) -> None:
        self._zip = zipfile.ZipFile(file)
        if any("/code/" in name for name in self._zip.namelist()):
            raise ValueError("it is a program of TorchScript, of which nothing is run, and lacks a state dict")
        pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        inner = [name for name in self._zip.namelist() if name.endswith((".ckpt", ".pt", ".pth", ".safetensors"))]
        if not pickles and inner:
            # Latent diffusion publishes its autoencoders so.
            raise UserError(f"{file.name} is an archive, not a checkpoint; unpack it, and pass the {inner[0]} in it.")
        packed = [entry.filename for entry in self._zip.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]} is compressed, which torch.save does not do")
        if len(pickles) != 1:
            raise ValueError(f"it is a zip archive with {len(pickles)} files data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        if self._order() != b"little":
            raise ValueError("its numbers are of a big-endian machine")
        self.objects = _Unpickler(io.BytesIO(self._zip.read(pickles[0]))).load()
        self._storages: dict[str, bytes] = {}

    def _order(self) -> bytes:
        name = f"{self._folder}byteorder"
        return self._zip.read(name) if name in self._zip.namelist() else b"little"

    def array(self, tensor: Tensor) -> np.ndarray:
        # Tensors may share a storage, which is read once.
        if tensor.storage not in self._storages:
            self._storages[tensor.storage] = self._zip.read(f"{self._folder}data/{tensor.storage}")
        return tensor.view(_numbers(self._storages[tensor.storage], tensor))


class _Legacy:
    """The format before PyTorch 1.6: five pickles, and then the storages one after the other."""

    def __init__(self, file: Any) -> None:
        self._file = file
        file.seek(0)
        if (_Unpickler(file).load(), _Unpickler(file).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError("it does not begin as files of torch.save do")
        if _Unpickler(file).load().get("little_endian") is not True:
            raise ValueError("its numbers are of a big-endian machine")
        unpickler = _LegacyUnpickler(file)
        self.objects = unpickler.load()
        self._places, self._storages = {}, {}
        for key in _Unpickler(file).load():
            dtype = unpickler.dtypes[str(key)]
            length = int.from_bytes(file.read(8), "little")
            self._places[str(key)] = (file.tell(), length * dtype.itemsize)
            file.seek(length * dtype.itemsize, io.SEEK_CUR)

    def array(self, tensor: Tensor) -> np.ndarray:
        if tensor.storage not in self._storages:
            place, size = self._places[tensor.storage]
            self._file.seek(place)
            self._storages[tensor.storage] = self._file.read(min(size, tensor.length * tensor.dtype.itemsize))
        return tensor.view(_numbers(self._storages[tensor.storage], tensor))


class _LegacyUnpickler(_Unpickler):
    """Remembers the dtype of each storage, which the file does not repeat next to its numbers."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, identity: Any) -> Any:
        if identity[0] == "module":
            # The class of a whole module, with its source.
            return StandIn
        storage = super().persistent_load(identity)
        self.dtypes[storage.key] = storage.dtype
        return storage


def _numbers(data: bytes, tensor: Tensor) -> np.ndarray:
    if tensor.length < 0 or len(data) != tensor.length * tensor.dtype.itemsize:
        expected = f"{tensor.length} numbers of {tensor.dtype}"
        raise ValueError(f"the storage {tensor.storage} must have {expected}, but has {len(data)} bytes")
    return np.frombuffer(data, tensor.dtype)


def _has(group: dict[str, Any], kind: Any) -> bool:
    """Return whether any value of a dictionary has this type."""
    return any(isinstance(value, kind) for value in group.values())


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, dict):
        # Nested ones first: a checkpoint may also hold tensors that are not weights, such as a random state.
        places = [content.get(name) for name in ("ema", "model", "state_dict")] + [content]
        groups = [group for group in places if isinstance(group, dict) and _has(group, Tensor | NumpyArray)]
        plain = [group for group in groups if not _has(group, dict)]
        if groups:
            return (plain or groups)[0]
    found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise UserError(
        f"{path} must hold a state dict, or a dictionary with one as 'ema', 'model' or 'state_dict', got {found}; save "
        "module.state_dict()."
    )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A damaged pickle can raise anything.
        raise UserError(f"{path} cannot be read ({one_line(error)}); fetch or save it again.") from error
