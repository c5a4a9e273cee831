"""Meshes and small datasets that the tests of the data package share."""

import jax
import numpy as np
import pytest

from vqjax.data import UnreadableImage


class NumberedImages:
    """Image i is 4 x 4 and all i, of class i % 10 if labelled; the ones in `broken` cannot be read."""

    def __init__(self, count, broken=(), labelled=False):
        self.name = "numbered"
        self.class_names = tuple("0123456789") if labelled else None
        self.count = count
        self.broken = frozenset(broken)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableImage(f"image-{index}.png", "broken on purpose")
        image = np.full((4, 4, 3), index, np.uint8)
        return {"image": image} if self.class_names is None else {"image": image, "label": np.int32(index % 10)}


@pytest.fixture
def numbered_images():
    return NumberedImages


@pytest.fixture(params=[1, 8], ids=["1-device", "8-devices"])
def mesh(request):
    return make_mesh(request.param)


@pytest.fixture
def eight_devices():
    return make_mesh(8)


def make_mesh(count):
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((count,), ("data",), axis_types=(auto,), devices=jax.devices()[:count])


@pytest.fixture
def warnings_logged(monkeypatch):
    """The lines that absl.logging.warning was asked to write."""
    from absl import logging

    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines
