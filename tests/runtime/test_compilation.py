"""The compilation cache of the trainer, which the tests replace by one of their own."""

import os
import subprocess
import sys

import pytest

_COMPILES = """
import jax
from vqjax.runtime.compilation import enable_compilation_cache
enable_compilation_cache()
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_programs_are_kept_in_the_cache_of_the_user_unless_it_is_disabled(tmp_path, enabled):
    unset = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    if not enabled:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    subprocess.run([sys.executable, "-c", _COMPILES], env=environment, check=True)
    assert any((tmp_path / "vqjax" / "compiled").glob("*")) == enabled
