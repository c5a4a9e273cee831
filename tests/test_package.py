"""What `import vqjax` brings along, and what it offers."""

import json
import subprocess
import sys
from pathlib import Path

import vqjax

PROGRAM = """
import json, sys
import jax, flax.linen, chex, numpy
before = {name.partition(".")[0] for name in sys.modules}
import vqjax
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - before)))
"""
NOT_THE_BORROWERS = {"absl", "grain", "ml_collections", "optax", "orbax", "PIL", "skimage", "tensorboardX"}
NOT_THE_BORROWERS |= {"tensorflow", "tensorflow_datasets", "tqdm"}


def test_borrowing_a_quantizer_imports_no_trainer_and_no_data_library():
    # Flax itself may import some of these; this is about what vqjax adds.
    root = Path(vqjax.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    added = set(json.loads(run.stdout))
    assert "vqjax" in added
    assert not added & NOT_THE_BORROWERS
    assert added - set(sys.stdlib_module_names) <= {"vqjax", "jaxtyping", "wadler_lindig"}


def test_the_public_names_exist():
    assert all(hasattr(vqjax, name) for name in vqjax.__all__)
    assert issubclass(vqjax.UserError, ValueError)
