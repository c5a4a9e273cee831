"""Partial sums of an evaluation in a file, from which it goes on after it was killed."""

import hashlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.runtime.files import atomic_file
from vqjax.runtime.paths import local_path

SECONDS_BETWEEN_SAVES = 60.0


class PartialSums:
    """The states of an evaluation's metrics, which are stored once a minute.

    Attributes:
      path: The file.
      images: Number of images in the states that were found.
      next_index: Index of the first example that is not in them; 0 if there are none.

    Example:
      >>> import tempfile
      >>> path = f"{tempfile.mkdtemp()}/partial.npz"
      >>> PartialSums(path, "checkpoint 7", every=0.0).save([{"sum": 5.0}, ()], images=2, next_index=3)
      True
      >>> found = PartialSums(path, "checkpoint 7")
      >>> found.images, found.next_index, found.states([{}, ()])
      (2, 3, [{'sum': 5.0}, ()])
      >>> PartialSums(path, "checkpoint 8").next_index
      0
    """

    def __init__(self, path: str | os.PathLike[str], key: str, *, every: float = SECONDS_BETWEEN_SAVES) -> None:
        """Look for what an evaluation has left.

        Args:
          path: The file, to whose name a checksum of the key is added: each evaluation has its own.
          key: What is evaluated, and how; sums of another evaluation are not used.
          every: Least number of seconds between two saves.
        """
        path = local_path(path)
        checksum = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:8]
        self.path, self._key, self._every = path.with_stem(f"{path.stem}-{checksum}"), key, every
        # What was being stored when it was killed.
        for unfinished in self.path.parent.glob(f".{self.path.name}.*"):
            unfinished.unlink(missing_ok=True)
        self._saved = time.monotonic()
        self._content = self._read()
        self.images = int(self._content["images"]) if self._content else 0
        self.next_index = int(self._content["next_index"]) if self._content else 0

    def _read(self) -> dict[str, Any] | None:
        try:
            # NumPy does not close what it cannot read.
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                content = json.loads(str(arrays["content"]))
                if content["key"] != self._key:
                    return None
                return content | {"arrays": [arrays[f"array_{place}"] for place in range(content["num_arrays"])]}
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            # Missing, cut or from another version: the evaluation begins anew.
            return None

    def states(self, like: Sequence[Any]) -> list[Any]:
        """Return the states that were found; those given if there are none.

        Args:
          like: Initial states of the metrics, whose named tuples are those that were stored.
        """
        if self._content is None:
            return list(like)
        arrays = self._content["arrays"]
        return [_decoded(stored, state, arrays) for stored, state in zip(self._content["states"], like, strict=True)]

    def save(self, states: Sequence[Any], *, images: int, next_index: int) -> bool:
        """Store the states, if the last time is long enough ago.

        Args:
          states: States of the metrics: dictionaries, tuples and named tuples of arrays, numbers, text and None.
          images: Number of images in them.
          next_index: Index of the first example that is not in them.

        Returns:
          Whether they have been stored.
        """
        if time.monotonic() - self._saved < self._every:
            return False
        arrays: list[np.ndarray] = []
        try:
            stored = [_encoded(state, arrays) for state in states]
        except TypeError:
            # The state of somebody's own metric, without which the others are of no use.
            self._saved = float("inf")
            return False
        content = {
            "key": self._key,
            "images": images,
            "next_index": next_index,
            "num_arrays": len(arrays),
            "states": stored,
        }
        named = {f"array_{place}": array for place, array in enumerate(arrays)}
        try:
            with atomic_file(self.path) as file:
                np.savez(file, content=np.array(json.dumps(content)), **named)
        except OSError as error:
            note = f"note: partial sums cannot be stored ({error}); if it is killed, this evaluation begins anew."
            print(note, file=sys.stderr, flush=True)
            self._saved = float("inf")
            return False
        self._saved = time.monotonic()
        return True

    def remove(self) -> None:
        """Delete the file, as what the evaluation found is written."""
        self.path.unlink(missing_ok=True)


def _encoded(state: Any, arrays: list[np.ndarray]) -> Any:
    """A state as JSON, whose arrays are appended to the list."""
    match state:
        case np.ndarray():
            if state.dtype == object:
                raise TypeError("arrays of objects cannot be stored")
            arrays.append(state)
            return {"array": len(arrays) - 1}
        case bool() | int() | float() | str() | None:
            return state
        case np.generic():
            return state.item()
        case Mapping():
            return {"mapping": {name: _encoded(value, arrays) for name, value in state.items()}}
        case tuple():
            return [_encoded(value, arrays) for value in state]
    raise TypeError(f"a {type(state).__name__} cannot be stored")


def _decoded(stored: Any, like: Any, arrays: Sequence[np.ndarray]) -> Any:
    """A state from its JSON, with the named tuples of another state."""
    if isinstance(stored, list):
        fields: Callable[..., Any] | None = getattr(type(like), "_make", None)
        parts = like if isinstance(like, tuple) and len(like) == len(stored) else [None] * len(stored)
        values = [_decoded(value, part, arrays) for value, part in zip(stored, parts, strict=True)]
        return fields(values) if fields else tuple(values)
    if isinstance(stored, dict):
        if "array" in stored:
            return arrays[stored["array"]]
        known = like if isinstance(like, Mapping) else {}
        return {name: _decoded(value, known.get(name), arrays) for name, value in stored["mapping"].items()}
    return stored
