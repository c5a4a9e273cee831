"""Decoded images per second and core: python -m benchmarks.data FOLDER

FOLDER holds train/ with folders of classes. Its first images are rewritten as JPEGs of 500 x 375 pixels, the usual size
of those of ImageNet, and read in training order with random resized crops. Each contender has as many cores as the row
says: the threads of vqjax, and the processes of PyTorch's DataLoader, in the same command.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from benchmarks.measure import report
from benchmarks.peers.available import installed
from vqjax.data import StreamedFeed
from vqjax.data.image_folder import image_folder_splits

COLUMNS = ("contender", "cores", "images/s", "images/s per core")
_STORED = (500, 375)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1024, help="files to write and read")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading, for each row")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options = vars(parser.parse_args())
    report("data", measure(**options), COLUMNS)


def measure(
    folder: Path, *, images: int, image_size: int, batch_size: int, seconds: float, cores: Sequence[int]
) -> list[dict[str, Any]]:
    """Read the images of a folder with some numbers of cores.

    Args:
      folder: As for ``main``.
      images: Number of training images.
      image_size: Height and width of the crops.
      batch_size: Images in a batch.
      seconds: Time of reading for each row.
      cores: Numbers of cores.

    Returns:
      A row for each contender and number of cores.
    """
    contenders = {"vqjax": _vqjax}
    if installed("torchvision"):
        contenders["torch DataLoader"] = _torch
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        _write(folder, Path(directory), images)
        for count in cores:
            for name, read in contenders.items():
                print(f"measuring {name}, {count} cores", file=sys.stderr, flush=True)
                with _cores(count):
                    rate = _images_per_second(read(Path(directory), image_size, batch_size, count), batch_size, seconds)
                row = {"contender": name, "cores": count, "images/s": rate, "images/s per core": rate / count}
                rows.append(row | {"image_size": image_size, "stored": "x".join(map(str, _STORED))})
    return rows


def _write(source: Path, target: Path, images: int) -> None:
    """Training images in the size that ImageNet's have, and one to hold out."""
    files = sorted((source / "train").rglob("*.jp*g"))[:images]
    for number, file in enumerate([*files, files[0]]):
        folder = target / ("train" if number < len(files) else "val") / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("RGB").resize(_STORED).save(folder / f"{number}.jpg", quality=90)


def _vqjax(folder: Path, image_size: int, batch_size: int, cores: int) -> Iterator[Any]:
    del cores  # its threads share what there is
    dataset = image_folder_splits(folder, image_size, eval_split="val", random_crop="resized").train
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    feed = StreamedFeed(dataset, seed=0, batch_size=batch_size, steps_per_dispatch=1, mesh=mesh)
    try:
        step = 0
        while True:
            yield jax.block_until_ready(feed.stage(step, 1))
            step += 1
    finally:
        feed.close()


def _torch(folder: Path, image_size: int, batch_size: int, cores: int) -> Iterator[Any]:
    from benchmarks.peers.torch_images import batches

    return batches(folder / "train", image_size=image_size, batch_size=batch_size, workers=cores)


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Let the threads and processes that start inside use some cores only."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def _images_per_second(
    batches: Iterator[Any], batch_size: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The rate after a first second or two, in which buffers fill."""
    with contextlib.closing(batches):
        for _ in range(2):
            next(batches)
        start, count = clock(), 0
        while clock() - start < seconds:
            next(batches)
            count += batch_size
        return count / (clock() - start)


if __name__ == "__main__":
    main()
