"""Networks of torchvision: read from every file that contains them, and compared in tests/parity/test_lpips.py."""

import numpy as np
import pytest

from helpers.networks import alexnet
from vqjax import UserError
from vqjax.importing.features import load_features
from vqjax.models import AlexNet


@pytest.mark.parametrize("name", ["features.{}.{}", "loss.perceptual_loss.net.slice1.{}.{}"])
def test_a_network_is_read_wherever_it_is(name):
    arrays = alexnet(name) | {name.split("net")[0].split("features")[0] + "lin0.model.1.weight": np.ones(3)}
    module, variables = load_features(arrays)
    assert isinstance(module, AlexNet)
    kernel = variables["params"]["conv_3"]["kernel"]
    np.testing.assert_allclose(kernel[1, 2, 3, 4], arrays[name.format(3, "weight")][4, 3, 1, 2], rtol=1e-6)


def test_what_is_no_network_or_lacks_a_layer_is_refused():
    with pytest.raises(UserError, match=r"must have the entry features.0.weight .* got \['weight'\]; pass the state"):
        load_features({"weight": np.ones(3)})
    arrays = alexnet()
    del arrays["features.10.bias"]
    with pytest.raises(UserError, match=r"got missing \['features.10.bias'\] .*; pass the state dict of torchvision's"):
        load_features(arrays)
