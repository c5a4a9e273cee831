"""Named weightings refuse a beta that is out of range."""

import pytest

from vqjax.errors import UserError
from vqjax.quantizers.weightings import standard, taming_legacy, vqtorch


@pytest.mark.parametrize("function", [standard, taming_legacy, vqtorch])
def test_a_negative_beta_is_refused(function):
    with pytest.raises(UserError, match=r"beta must be .*, got -0.1"):
        function(-0.1)


def test_a_vqtorch_beta_is_a_fraction():
    with pytest.raises(UserError, match=r"beta must be a number in \[0, 1\], got 1.5"):
        vqtorch(1.5)
