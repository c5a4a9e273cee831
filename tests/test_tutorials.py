"""The tutorials and the README run as printed: commands and programs one after another, in a directory."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from helpers.commands import ROOT
from vqjax.reporting import save_png

BLOCK = re.compile(r"<!-- (?:(run)|file: ([\w.]+)) -->\n```(python|bash)\n(.*?)```", re.DOTALL)


def follow(page: str, place: Path) -> str:
    """Does what a page says, in a directory, and returns what its commands print."""
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks, page
    # As from a clone, whose programs lie beside the reader's files.
    for script in ("train.py", "eval.py"):
        (place / script).symlink_to(ROOT / script)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    printed = ""
    for runs, file, language, code in blocks:
        if file:
            (place / file).write_text(code)
        if runs:
            command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
            done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
    return printed


@pytest.mark.full
def test_a_tokenizer_of_ones_own_photographs(tmp_path):
    names = "astronaut", "cat", "chelsea", "coffee", "colorwheel", "hubble_deep_field", "immunohistochemistry", "rocket"
    for name in (*names, "retina", "logo"):
        photograph = np.ascontiguousarray(getattr(data, name)()[..., :3])
        save_png(tmp_path / f"photographs/{name}.png", photograph)
        for number, part in enumerate(np.array_split(photograph, 3)):
            save_png(tmp_path / f"photographs/{name}-{number}.png", part)
    printed = follow("docs/tutorials/train.md", tmp_path)
    assert "psnr_gain" in printed
    assert "tokens of 128 codes" in printed
    assert {"model.safetensors", "config.json", "README.md"} == {file.name for file in tmp_path.glob("my-tokenizer/*")}


@pytest.mark.full
def test_a_network_of_ones_own_in_the_trainer(tmp_path):
    printed = follow("docs/tutorials/own-parts.md", tmp_path)
    assert re.search(r"loss\W+charbonnier", (tmp_path / "runs/patches/eval/report.md").read_text())
    assert "psnr" in printed


@pytest.mark.full
def test_the_readme_evaluates_uses_and_shares_a_tokenizer(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs/quickstart")
    assert "weights" in follow("README.md", tmp_path)
