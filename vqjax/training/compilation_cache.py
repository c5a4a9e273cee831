"""Compiled programs are kept on the disk, so that the next start of the same run does not compile them again."""

import os
from pathlib import Path

import jax

# JAX's own default of one second leaves out most of what a small model compiles.
_SHORTEST_COMPILATION = 0.2


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, under ``~/.cache/vqjax`` (or ``$XDG_CACHE_HOME/vqjax``).

    ``JAX_COMPILATION_CACHE_DIR`` names another directory, and ``JAX_ENABLE_COMPILATION_CACHE=false`` does without.
    Where the directory cannot be written to, nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqjax" / "compiled"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)
