"""Images of their own sizes, of a directory or a file of samples, read once in order."""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import UInt8

from vqjax.data.dataset import UnreadableImage
from vqjax.data.folder_index import IndexedFile, index_folder, printable
from vqjax.data.images import decode_as_stored
from vqjax.data.reading import READING_THREADS
from vqjax.errors import UserError, one_line
from vqjax.runtime.paths import local_path

SAMPLES = "arr_0"
"""Name of the array of images in a file of samples, as guided diffusion writes it."""

WholeImage = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class WholeImages(Protocol):
    """Images of any sizes, which are read in the same order each time.

    Attributes:
      name: Name in reports.
      fingerprint: Text that is another one for other images.
    """

    name: str
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, start: int = 0) -> Iterator[WholeImage]:
        """Yield the images from an index on."""
        ...


def whole_images(path: str | os.PathLike[str], argument: str = "path") -> WholeImages:
    """Open the images of a directory, or of a file of samples.

    Args:
      path: A directory, searched recursively, or an .npz with uint8 ``arr_0`` of shape ``[images, height, width, 3]``,
        which is read as needed. Nothing in it is executed.
      argument: Name of the argument in messages.

    Raises:
      UserError: It is neither, holds no images, or a file in it is no image.

    Example:
      >>> import tempfile
      >>> file = f"{tempfile.mkdtemp()}/samples.npz"
      >>> np.savez(file, np.zeros((5, 8, 8, 3), np.uint8))
      >>> len(whole_images(file)), next(whole_images(file).read()).shape
      (5, (8, 8, 3))
    """
    place = local_path(path, argument)
    if place.is_dir():
        return _Folder(place, argument)
    if place.suffix == ".npz" and place.is_file():
        return _Samples(place, argument)
    found = "another file" if place.exists() else "which does not exist"
    raise UserError(f"{argument} must be a directory of images or an .npz file, got {str(path)!r}, {found}.")


class _Folder:
    """The image files below a directory, in sorted order of their paths."""

    def __init__(self, root: Path, argument: str):
        self.name, self._root = printable(str(root)), root
        self._files = index_folder(root)
        if not self._files:
            raise UserError(
                f"{argument} must be a directory of images, got {self.name} without any file that ends in .png, .jpg, "
                ".webp or the like; correct the path."
            )
        for file in self._files:
            if file.error:
                raise _unreadable(UnreadableImage(root / file.path, file.error))

        listed = repr([(file.path, file.digest) for file in self._files])
        self.fingerprint = hashlib.sha256(listed.encode(errors="backslashreplace")).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int = 0) -> Iterator[WholeImage]:
        ahead = grain.ReadOptions(READING_THREADS, prefetch_buffer_size=2 * READING_THREADS)
        images = iter(grain.MapDataset.source(self._files[start:]).map(self._decoded).to_iter_dataset(ahead))
        try:
            for image in images:
                if isinstance(image, UnreadableImage):
                    raise _unreadable(image)
                yield image
        finally:
            images.close()

    def _decoded(self, file: IndexedFile) -> WholeImage | UnreadableImage:
        path = self._root / file.path
        try:
            return decode_as_stored(path, path=path)
        except UnreadableImage as error:
            return error


def _unreadable(error: UnreadableImage) -> UserError:
    return UserError(f"{error}; replace or remove that file, as every image counts.")


class _Samples:
    """The rows of an array in an .npz, which is larger than memory if need be."""

    def __init__(self, file: Path, argument: str):
        self.name, self._file, self._argument = printable(str(file)), file, argument
        with self._opened() as content:
            del content

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, start: int = 0) -> Iterator[WholeImage]:
        size = int(np.prod(self._shape[1:]))
        with self._opened() as content:
            content.seek(start * size, os.SEEK_CUR)
            for _ in range(start, len(self)):
                yield np.frombuffer(content.read(size), np.uint8).reshape(self._shape[1:])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """The pixels, behind a header that says what they are."""
        try:
            with zipfile.ZipFile(self._file) as archive, archive.open(f"{SAMPLES}.npy") as content:
                version = np.lib.format.read_magic(content)
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                self._shape, by_columns, dtype = read_header(content)
                if dtype != np.uint8 or len(self._shape) != 4 or self._shape[3] != 3 or 0 in self._shape or by_columns:
                    raise ValueError(f"its images are {dtype} of shape {list(self._shape)}")
                self.fingerprint = f"{self._shape}, checksum {archive.getinfo(f'{SAMPLES}.npy').CRC:08x}"
                yield content
        except Exception as error:  # damaged archives raise a dozen unrelated types
            raise UserError(
                f"{self._argument} must be an .npz with uint8 {SAMPLES} of shape [images, height, width, 3], got "
                f"{self.name} ({one_line(error)})."
            ) from error
