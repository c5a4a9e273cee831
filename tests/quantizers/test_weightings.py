"""Named weightings refuse a beta that is out of range."""

import pytest

from vqjax.errors import UserError
from vqjax.quantizers.weightings import standard, taming_legacy, vqtorch


@pytest.mark.parametrize("function", [standard, taming_legacy, vqtorch])
def test_a_negative_beta_is_refused(function):
    with pytest.raises(UserError, match=r"beta=-0.1 is not allowed"):
        function(-0.1)


def test_a_vqtorch_beta_is_a_fraction():
    with pytest.raises(UserError, match=r"beta=1.5 is not allowed: use a number in \[0, 1\]"):
        vqtorch(1.5)
