"""What only the tests of the quantizers need."""

import jaxtyping
import pytest


@pytest.fixture
def as_users_run_it():
    """Without the type checks of the tests, which would speak before the quantizer does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
