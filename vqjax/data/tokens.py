"""Source ``tokens``: the tokens of a data set's images, which ``vqjax tokens`` writes once for all runs over them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, Shaped

from vqjax.data.batches import hold_out
from vqjax.data.dataset import Example, Splits
from vqjax.data.token_file import load_tokens, narrowest
from vqjax.errors import UserError, one_line
from vqjax.functional.tokens import TokenInfo
from vqjax.runtime.files import atomic_file, file_checksum, strict_json
from vqjax.runtime.paths import local_path

INDEX_FILE = "tokens.json"
FORMAT = 1
"""Version of the index."""

_CHECKSUM = ".sha256"


class TokenDataset:
    """Tokens of images, an :class:`vqjax.data.ImageDataset` of ``tokens`` in the place of ``image``.

    Args:
      name: Name in reports.
      parts: Tokens, and classes or None, of consecutive examples.
      info: What they have in common.
      class_names: The class that each label stands for; None if the examples have none.

    Example:
      >>> info = TokenInfo(num_codes=(16,), shape=(2, 2))
      >>> dataset = TokenDataset("toy", [(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), None)], info)
      >>> len(dataset), dataset[1]["tokens"].tolist()
      (2, [[4, 5], [6, 7]])
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple[Integer[np.ndarray, "..."], Integer[np.ndarray, "..."] | None]],
        info: TokenInfo,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.info, self.class_names = name, info, class_names
        self._parts = parts
        self._ends = np.cumsum([len(tokens) for tokens, _ in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        part = int(np.searchsorted(self._ends, index, side="right"))
        tokens, labels = self._parts[part]
        row = index - int(self._ends[part]) + len(tokens)
        example = {"tokens": np.array(tokens[row])}
        return example if labels is None else example | {"label": np.int32(labels[row])}


def token_splits(name: str | Path, eval_fraction: float = 0.1) -> Splits:
    """Open a directory of ``vqjax tokens``, whose shards are read as needed, or a file of ``--export_tokens``.

    Args:
      name: The directory, or the .npz file, of which a part is held out at random.
      eval_fraction: Share held out from a file, in (0, 1).

    Returns:
      Both splits.

    Raises:
      UserError: There are no such tokens, or a shard is damaged.
    """
    path = local_path(name, "config.data.name")
    return _directory_splits(path) if path.is_dir() else _file_splits(path, eval_fraction)


def _file_splits(path: Path, eval_fraction: float) -> Splits:
    saved = load_tokens(path)
    levels, grid = saved.context.get("codes_of_position", [saved.num_codes]), saved.context.get("grid")
    tokenizer, classes = saved.context.get("tokenizer"), len(saved.class_names or ())
    if not (_VALID["num_codes"](levels) and _VALID["grid"](grid) and _VALID["tokenizer"](tokenizer)):
        raise UserError(f"{path} must say what its tokens are, got {saved.context!r:.200}; export them again.")
    if saved.labels is not None and classes and not 0 <= saved.labels.min() <= saved.labels.max() < classes:
        found = f"{saved.labels.min()} to {saved.labels.max()}"
        raise UserError(f"{path} must have labels in [0, {classes - 1}], got {found}; export the tokens again.")
    info = TokenInfo(
        tuple(levels),
        saved.indices.shape[1:],
        classes,
        tokenizer=tokenizer,
        positions=None if grid is None else tuple(grid),
    )

    def part(name: str, rows: Int[np.ndarray, " rows"]) -> TokenDataset:
        labels = None if saved.labels is None else saved.labels[rows]
        return TokenDataset(f"{path.name}/{name}", [(saved.indices[rows], labels)], info, saved.class_names)

    train, evaluation = hold_out(len(saved.indices), eval_fraction, name=str(path))
    return Splits(part("train", train), part("eval", evaluation))


def _directory_splits(directory: Path) -> Splits:
    index = read_index(directory)
    if index is None or not index["complete"]:
        state = "no tokens" if index is None else "tokens that are not complete"
        raise UserError(
            f"config.data.name must be a directory of vqjax tokens, got {str(directory)!r} with {state}; run vqjax "
            "tokens --workdir=TOKENIZER --out=DIR."
        )
    info = TokenInfo(
        tuple(index["num_codes"]),
        tuple(index["shape"]),
        len(index["class_names"] or ()),
        None if index["scales"] is None else tuple(map(tuple, index["scales"])),
        index["code_dim"],
        index["tokenizer"],
        None if index["grid"] is None else tuple(index["grid"]),
    )
    datasets = []
    for split in Splits._fields:
        parts = [_read(directory / shard["file"], info, shard) for shard in index["splits"][split]]
        datasets.append(TokenDataset(f"{directory.name}/{split}", parts, info, index["class_names"]))
    return Splits(*datasets)


def read_index(directory: Path) -> dict[str, Any] | None:
    """Return what the index of a directory of tokens says; None without one.

    Args:
      directory: The directory.

    Raises:
      UserError: The index cannot be read.
    """
    file = directory / INDEX_FILE
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"it has the format {index['format']!r} instead of {FORMAT}")
        index.setdefault("grid", None)  # not noted by earlier releases
        for name, is_valid in _VALID.items():
            if not is_valid(index[name]):
                raise ValueError(f"its `{name}` is {index[name]!r:.60}")
        shards = [index["splits"].get(split) for split in Splits._fields]
        if index["complete"] and not all(shards):
            raise ValueError("a split has no shards")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} is not a valid index of tokens ({one_line(error)}); remove it, and write the tokens again with "
            "vqjax tokens."
        ) from error
    return index


def _is_number(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def _are_shards(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(shard, dict)
        and isinstance(shard.get("file"), str)
        and Path(shard["file"]).name == shard["file"]
        and _is_number(shard.get("rows"))
        and isinstance(shard.get("sha256"), str)
        for shard in value
    )


_VALID: dict[str, Callable[[Any], bool]] = {
    "complete": lambda value: isinstance(value, bool),
    "num_codes": _are_numbers,
    "shape": _are_numbers,
    "scales": lambda value: value is None or (isinstance(value, list) and all(map(_are_numbers, value))),
    "grid": lambda value: value is None or _are_numbers(value),
    "code_dim": lambda value: value is None or _is_number(value),
    "tokenizer": lambda value: value is None or isinstance(value, dict),
    "class_names": lambda value: (
        value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ),
    "splits": lambda value: isinstance(value, dict) and all(map(_are_shards, value.values())),
}
"""Checks of the fields of an index, by name."""


def write_index(directory: Path, index: Mapping[str, Any]) -> None:
    """Write the index of a directory of tokens.

    Args:
      directory: The directory.
      index: Its contents, without the number of the format.
    """
    with atomic_file(directory / INDEX_FILE) as file:
        file.write((strict_json({"format": FORMAT} | dict(index), indent=2) + "\n").encode())


def write_shard(
    file: Path,
    tokens: Integer[np.ndarray, " examples *shape"],
    labels: Integer[np.ndarray, " examples"] | None,
    num_codes: int,
) -> None:
    """Write a shard: a .npy file of records with ``tokens`` and, if there are classes, ``label``.

    Args:
      file: The file; it appears when it is complete.
      tokens: Tokens of the examples.
      labels: Their classes.
      num_codes: Largest number of codes, for the width of the integers.
    """
    fields = [("tokens", narrowest(num_codes), tokens.shape[1:])]
    records = np.zeros(len(tokens), fields if labels is None else [*fields, ("label", np.int32)])
    records["tokens"] = tokens
    if labels is not None:
        records["label"] = labels
    with atomic_file(file) as stream:
        np.save(stream, records, allow_pickle=False)
    # Until the index lists it, its checksum says that it is whole, and of these tokens.
    with atomic_file(_checksum_file(file)) as stream:
        stream.write(f"{file_checksum(file)}  {file.name}\n".encode())


def noted_checksum(file: Path) -> str | None:
    """Return the checksum that was noted when a shard was written; None without one.

    Args:
      file: The shard.
    """
    try:
        return _checksum_file(file).read_text(encoding="utf-8").split()[0]
    except (OSError, ValueError, IndexError):
        return None


def forget_shards(directory: Path) -> None:
    """Remove the notes of which shards are written: the index lists them, or they are not to be taken.

    Args:
      directory: Directory of tokens.
    """
    for file in directory.glob(f"*.npy{_CHECKSUM}"):
        file.unlink(missing_ok=True)


def _checksum_file(file: Path) -> Path:
    return file.with_name(file.name + _CHECKSUM)


def described_shards(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield what the index says of each shard: its name, its number of examples and its checksum.

    Args:
      files: The shards in order.
    """
    for file in files:
        rows = len(np.load(file, mmap_mode="r", allow_pickle=False))
        yield {"file": file.name, "rows": rows, "sha256": file_checksum(file)}


def _read(
    file: Path, info: TokenInfo, shard: Mapping[str, Any]
) -> tuple[Shaped[np.ndarray, " examples *shape"], Shaped[np.ndarray, " examples"] | None]:
    """The tokens and classes of a shard, which is compared with its checksum first."""
    try:
        if (found := file_checksum(file)) != shard["sha256"]:
            raise ValueError(f"its checksum is {found[:12]} instead of {shard['sha256'][:12]}")
        records = np.load(file, mmap_mode="r", allow_pickle=False)
        fields = records.dtype.fields or {}
        integers = all(fields[name][0].base.kind in "iu" for name in fields)
        if records.shape != (shard["rows"],) or records["tokens"].shape[1:] != info.shape or not integers:
            raise ValueError(f"it holds {records.dtype} of shape {list(records.shape)}")
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise UserError(
            f"{file} is not the shard that was written ({one_line(error)}); vqjax tokens rewrites it."
        ) from error
    return records["tokens"], records["label"] if "label" in fields else None
