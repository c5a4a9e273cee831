"""The benchmark of the input pipeline at toy size, and how it counts."""

import itertools

import numpy as np
import pytest
from PIL import Image

from benchmarks import data


def test_the_rate_counts_the_images_of_the_time_that_is_measured():
    ticks = itertools.count(0, 0.5)
    read = []

    def batches():
        for number in itertools.count():
            read.append(number)
            yield number

    # The clock advances half a second a look: at 0, then before each batch, until two seconds are over.
    assert data._images_per_second(batches(), 8, 2.0, lambda: next(ticks)) == 3 * 8 / 2.5
    assert len(read) == 2 + 3


@pytest.mark.full
def test_images_are_read_by_the_cores_of_a_row(tmp_path):
    for number in range(6):
        path = tmp_path / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    rows = data.measure(tmp_path, images=5, image_size=32, batch_size=2, seconds=0.2, cores=[1, 2])
    assert [row["cores"] for row in rows if row["contender"] == "vqjax"] == [1, 2]
    for row in rows:
        assert row["images/s"] > 0
        np.testing.assert_allclose(row["images/s per core"] * row["cores"], row["images/s"])
