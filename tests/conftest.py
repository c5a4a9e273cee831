"""Every test runs on eight fake CPU devices, on any machine, and under strict shape promotion.

`pytest` proves the main promises in a few minutes: it leaves out what is marked `full`, takes one case of each
parametrized test, half of the examples in docstrings, and few random examples. `pytest --full` and `pytest PATH` leave
out nothing, `pytest --share PATH` does.

Compiling takes most of the time, and a third of that goes into optimizing code that runs once. That is left out unless
the environment asks for a level: XLA_FLAGS=--xla_backend_optimization_level=3.
"""

import os
import pathlib
import signal

import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

from helpers import shares

pytest_plugins = ["helpers.runs"]  # fixtures that several rooms share

if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Under nohup, or in the background of a script, signals are ignored that the tests, and programs they start, are sent.
for _number, _handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
# The same random examples everywhere, and as many seconds for each as compiling takes.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every test, case and random example")
    parser.addoption("--share", action="store_true", help="run what `pytest` alone runs, of the given paths")
    parser.addoption("--kills", type=int, default=20, help="SIGKILLs of the soak test")
    parser.addoption("--soak_seed", type=int, default=0, help="when the soak test kills, and what it damages")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: not in the share of the tests that `pytest` alone runs")
    if hasattr(config, "workerinput"):
        config.option.full = config.workerinput["full"]
    elif config.args_source is config.ArgsSource.ARGS and not config.option.share:
        config.option.full = True
    shares.FULL = config.option.full


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Tell the workers of pytest-xdist, which are given paths in any case."""
    node.workerinput["full"] = node.config.option.full


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.full:
        kept = shares.share(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory):
    """Many tests start the same run: what one has compiled the others read, in all processes, and no user's cache."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Every compiled program maps memory, and Linux kills a process that maps more than about 65,000 places."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    # Fewer than half of what is allowed: by then a worker holds ten gigabytes.
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()


@pytest.fixture
def as_users_run_it():
    """Without the type checks of the tests, which would speak before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
