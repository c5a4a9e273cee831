"""The tokenizer of a run in a form to share, with its evaluation."""

import shutil

import numpy as np
import pytest

from helpers.commands import call
from helpers.hub import local_hub, settings_of
from vqjax import Tokenizer, load_tokenizer
from vqjax.errors import UserError
from vqjax.evaluation.report import METRICS_FILE
from vqjax.training.share import share_tokenizer


def test_a_run_is_shared_with_the_evaluation_of_the_same_checkpoint(finished, tmp_path, capsys):
    share_tokenizer(workdir=finished, out=tmp_path / "shared")
    assert f"tokenizer: {tmp_path / 'shared'}, " in capsys.readouterr().out
    ours, again = load_tokenizer(finished), Tokenizer.from_pretrained(tmp_path / "shared")
    assert (again.step, again.checksum) == (ours.step, ours.checksum)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert f"trained for {ours.step:,} steps" in card
    assert "## Evaluation" in card
    assert "| psnr |" in card
    assert "![" not in card
    images = np.zeros((1, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(again.encode(images), ours.encode(images))


def test_the_card_says_what_a_run_was_imported_from(finished, tmp_path):
    """Bug: an imported tokenizer was said to be trained for 0 steps on the images of the config."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "origin.json").write_text('{"file": "vq-f8.ckpt", "format": "taming"}')
    share_tokenizer(workdir=run, out=tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "imported from `vq-f8.ckpt`, of the format taming, then trained for" in card


def test_an_evaluation_of_another_checkpoint_is_left_out(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    file = run / "eval" / METRICS_FILE
    step = load_tokenizer(run).step
    file.write_text(file.read_text().replace(f'"checkpoint_step": {step}', '"checkpoint_step": 1'))
    share_tokenizer(workdir=run, out=tmp_path / "shared")
    assert "psnr" not in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.full
def test_a_run_is_shared_on_the_hub(finished, tmp_path):
    with local_hub() as (address, repositories):
        settings = settings_of(address, tmp_path / "home")
        status, out, err = call("vqjax", "share", f"--workdir={finished}", "--hub=owner/shared", **settings)
        assert status == 0, err
        assert f"{address}/owner/shared" in out
        assert {"README.md", "config.json"} <= repositories["owner/shared"].keys()
    assert b"## Evaluation" in repositories["owner/shared"]["README.md"]


def test_a_place_is_asked_for(finished):
    with pytest.raises(UserError, match="--out must be a directory unless --hub is given"):
        share_tokenizer(workdir=finished)


def test_flags_that_would_be_ignored_are_refused(finished, tmp_path):
    with pytest.raises(UserError, match="--private must be left out without --hub"):
        share_tokenizer(workdir=finished, out=tmp_path / "shared", private=True)
    with pytest.raises(UserError, match="--step must be left out with --best, got 1"):
        share_tokenizer(workdir=finished, out=tmp_path / "shared", step=1, best=True)
    assert not (tmp_path / "shared").exists()
