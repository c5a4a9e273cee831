"""The programs and the tokenizer in examples/."""

import importlib.util

import jax.numpy as jnp
import pytest
from skimage import data

from helpers.commands import ROOT
from vqjax import Tokenizer, load_tokenizer
from vqjax.evaluation.metrics import psnr


@pytest.mark.full
def test_a_sweep_trains_all_combinations_once_and_ranks_them(config, tmp_path, capfd):
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "examples" / "sweep.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    fixed = {f"data.{name}": config.data[name] for name in ("source", "name", "image_size")}
    fixed |= {"num_steps": 1, "batch_size": 8, "model.width": 8, "optimizer.schedule": "constant"}
    fixed |= {"keep_best": "mse_01", "keep_best_mode": "min", "eval_every": 1, "checkpoint_every": 1}
    grid, metrics = {"quantizer.num_codes": [4, 8]}, ("usage_split", "mse_01")
    table = example.sweep("quickstart", grid, fixed, metrics, tmp_path)
    assert "quantizer.num_codes" in table
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    assert sorted(row[0].strip() for row in rows) == ["4", "8"]
    assert float(rows[0][2]) <= float(rows[1][2])
    assert load_tokenizer(tmp_path / "num_codes=4").model.quantizer.num_codes == 4
    capfd.readouterr()
    assert example.sweep("quickstart", grid, fixed, metrics, tmp_path) == table
    assert "resuming at step 1" in capfd.readouterr().err


def test_the_tokenizer_of_the_quickstart_reconstructs_a_photograph_that_it_has_not_seen():
    tokenizer = Tokenizer.from_pretrained(ROOT / "examples" / "quickstart")
    photograph = data.cat()[None, 44:300, 100:356]
    tokens = tokenizer.encode(photograph)
    assert tokens.shape == (1, 64, 64)
    reconstruction = (tokenizer.decode(tokens).clip(-1, 1) + 1) / 2
    assert psnr(jnp.asarray(photograph, jnp.float32) / 255, reconstruction)[0] > 28
