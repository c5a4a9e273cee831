"""I3D: what its files hold, and what is refused; compared in tests/parity/test_i3d.py."""

import numpy as np
import pytest

from helpers.networks import i3d
from vqjax import UserError
from vqjax.importing.i3d import load_i3d


@pytest.fixture(scope="module")
def arrays():
    return i3d()


@pytest.mark.full
def test_norms_become_part_of_the_convolutions(arrays):
    steps = {"Mixed_4d.b2b.bn.num_batches_tracked": np.array(7)}
    unit = load_i3d(arrays | steps)[1]["params"]["Mixed_4d"]["b2b"]["conv3d"]
    norm = {name: arrays[f"Mixed_4d.b2b.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-3)
    kernel = arrays["Mixed_4d.b2b.conv3d.weight"].transpose(2, 3, 4, 1, 0)
    np.testing.assert_allclose(unit["kernel"], kernel * scale, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(unit["bias"], norm["bias"] - norm["running_mean"] * scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Conv3d_1a_7x7.conv3d.weight": np.zeros((64, 2, 7, 7, 7))},
            "optical flow, which lacks a third channel; pass",
        ),
        ({"logits.conv3d.weight": np.zeros((157, 1024, 1, 1, 1))}, "of 157 classes, which lacks the 400 of Kinetics"),
        (
            {"logits.conv3d.weight": None},
            r"entries such as .* which lack logits.conv3d.weight; pass i3d_pretrained_400",
        ),
        ({"Mixed_5c.b0.conv3d.weight": None}, r"missing \['Mixed_5c.b0.conv3d.bias', 'Mixed_5c.b0.conv3d.weight'\]"),
        (
            {"Mixed_5c.b0.bn.bias": np.full(384, np.nan)},
            r"infinite or undefined numbers in \['Mixed_5c.b0.conv3d.bias'",
        ),
        ({"Mixed_6a.b0.conv3d.weight": np.zeros(3)}, r"surplus \['Mixed_6a.b0.conv3d.weight'\]; pass"),
    ],
)
def test_another_network_is_refused_by_what_it_is_and_lacks(arrays, changes, message):
    changed = {name: array for name, array in (arrays | changes).items() if array is not None}
    with pytest.raises(UserError, match=message):
        load_i3d(changed)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(UserError, match=r"got entries such as \['encoder.weight'\], which lack Conv3d_1a_7x7.conv3d.*"):
        load_i3d({"encoder.weight": np.zeros(3)})
