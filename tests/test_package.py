"""The dependencies of `import vqjax`, and its public names."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vqjax

ROOT = Path(vqjax.__file__).parents[1]
IMPORTED = """
import json, sys
import jax, flax.linen, numpy
before = {name.partition(".")[0] for name in sys.modules}
import vqjax
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - before)))
"""
# What `pip install vqjax` leaves out, by the names of its modules; flax itself brings optax, orbax and absl.
ABSENT = {"PIL", "grain", "importlib_resources", "matplotlib", "ml_collections", "skimage", "tensorboardX"}
ABSENT |= {"huggingface_hub", "tensorflow", "tensorflow_datasets", "torch", "tqdm", "wandb"}
BORROWER = f"""
import sys, tempfile
sys.modules.update(dict.fromkeys({sorted(ABSENT)}))  # importing any of them raises an ImportError
import jax, numpy
import vqjax, vqjax.importing, vqjax.nnx
from flax import nnx
z = jax.numpy.ones((2, 4))
quantizer = vqjax.nnx.Quantizer(vqjax.VectorQuantizer(num_codes=8), dim=4, rngs=nnx.Rngs(0))
assert quantizer(z, train=True).indices.shape == (2,)
from vqjax.models.registry import build_model
model = build_model({{"name": "sonnet", "width": 8, "latent_dim": 4}}, {{"name": "vq", "num_codes": 8}})
variables = jax.jit(model.init)({{"params": jax.random.key(0)}}, jax.numpy.ones((1, 8, 8, 3)))
with tempfile.TemporaryDirectory() as directory:
    vqjax.Tokenizer(model, variables, config={{}}, step=0).save_pretrained(directory)
    assert vqjax.Tokenizer.from_pretrained(directory).encode(numpy.zeros((1, 8, 8, 3), "uint8")).shape == (1, 2, 2)
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_no_trainer_and_no_data_library():
    added = set(json.loads(run(IMPORTED)))
    assert "vqjax" in added
    assert added - set(sys.stdlib_module_names) <= {"vqjax", "jaxtyping", "wadler_lindig"}


@pytest.mark.full
def test_the_quantizers_work_without_the_packages_of_the_extras():
    run(BORROWER)


def test_the_core_depends_on_jax_flax_and_array_libraries_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    assert names == {"flax", "jax", "jaxtyping", "numpy", "safetensors"}
    assert "vqjax[train,plots,hub,video]" in project["optional-dependencies"]["test"]


def test_each_room_imports_from_those_below_it_alone():
    """In the order of README.md, and whatever they import where it is used."""
    rooms = re.findall(r"^vqjax/(\w+)(?:/|\.py) ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(rooms) > {"training", "quantizers", "functional"}
    for number, room in enumerate(rooms):
        place = ROOT / "vqjax" / room
        for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                parts = {name.split(".")[1] for name in names if name.startswith("vqjax.")}
                assert not parts & set(rooms[:number]), f"{file.name}: {parts}"


def test_the_version_stands_in_one_place():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert vqjax.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_public_names_exist():
    names = "BSQ EMACodebook FSP FSQ FrozenCodebook GradientCodebook Grouped IBQ LFQ MultiScaleVQ ProductVQ Replacement"
    names += " Residual ResidualVQ SimVQ Tokenizer VectorQuantizer estimators functional load_tokenizer"
    assert [name for name in names.split() if not hasattr(vqjax, name)] == []
    assert vqjax.ResidualVQ is vqjax.Residual
    assert issubclass(vqjax.UserError, ValueError)


def test_type_checkers_read_its_annotations():
    assert (ROOT / "vqjax" / "py.typed").is_file()


def test_the_oldest_pinned_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["train"], *extras["plots"], *extras["hub"], *extras["test"]]
    bounds = dict(requirement.split(">=") for requirement in requirements if ">=" in requirement)
    pins = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().split())
    for name, bound in bounds.items():
        assert (pins[name] + ".").startswith(bound.partition(",")[0] + "."), name
