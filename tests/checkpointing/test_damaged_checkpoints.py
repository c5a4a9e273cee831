"""Nothing that happens to the newest checkpoint costs more than the steps since the one before."""

import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import chex
import jax
import pytest

from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.discovery import DAMAGED, find_checkpoint, set_aside
from vqjax.checkpointing.integrity import CHECKSUMS_FILE
from vqjax.errors import UserError
from vqjax.tasks.vqvae import VQVAETask
from vqjax.training import dispatch
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

ONE_DEVICE = jax.devices()[:1]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1 << (len(content) % 8)
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "one bit flipped": flip_a_bit, "deleted": Path.unlink}


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run with checkpoints of steps 10 and 12."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_the_checksums(run):
    def verdicts() -> list[str]:
        process = subprocess.run(
            ["sha256sum", "--check", CHECKSUMS_FILE], cwd=run / "checkpoints" / "12", capture_output=True, text=True
        )
        return [line.rpartition(": ")[2] for line in process.stdout.splitlines()]

    before = verdicts()
    assert len(before) >= 8
    assert set(before) == {"OK"}
    flip_a_bit(next((run / "checkpoints" / "12").rglob("d/*")))
    assert sorted(verdicts()) == ["FAILED", *before[1:]]


@pytest.mark.full
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_to_any_file_is_found(run, damage: Callable[[Path], None]):
    newest = run / "checkpoints" / "12"
    files = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(files) >= 8
    for file in files:
        shutil.copytree(newest, run / "copy")
        damage(newest / file)
        found = find_checkpoint(run)
        assert found.step == 10, file
        assert list(found.passed_over) == [12]
        shutil.rmtree(newest)
        (run / "copy").rename(newest)


@pytest.mark.parametrize(("file", "damage"), [("state/d", flip_a_bit), ("_CHECKPOINT_METADATA", Path.unlink)])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, run, config, file, damage, caplog):
    place = run / "checkpoints" / "12" / file
    damage(next(place.iterdir()) if place.is_dir() else place)
    assert load_tokenizer(run).step == 10
    assert "checkpoint 12 is not intact" in caplog.text
    assert "loading that of step 10" in caplog.text
    train(config, run, devices=ONE_DEVICE)
    chex.assert_trees_all_equal(load_tokenizer(finished).variables, load_tokenizer(run).variables)
    assert (finished / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    assert [path.name for path in (run / DAMAGED).iterdir()] == ["12"]
    assert f"moved it to {run / DAMAGED / '12'}" in caplog.text


def lost(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "12")
    (run / "checkpoints" / "12").symlink_to("nowhere")


def replaced(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "12")
    (run / "checkpoints" / "12").write_text("")


@pytest.mark.parametrize("damage", [lost, replaced])
def test_what_is_no_directory_is_set_aside(run, damage):
    """Bug: the run trained on, and could not save where a link without a target was."""
    damage(run)
    found = find_checkpoint(run)
    assert (found.step, found.passed_over) == (10, {12: "it is not a directory"})
    set_aside(run, found)
    assert (run / DAMAGED / "12").exists() or (run / DAMAGED / "12").is_symlink()
    assert find_checkpoint(run).passed_over == {}


def test_a_copy_beside_the_checkpoints_is_none_of_them(run):
    shutil.copytree(run / "checkpoints" / "12", run / "checkpoints" / "012")
    assert find_checkpoint(run).passed_over == {}


def test_a_file_in_the_place_of_the_checkpoints_is_named_at_once(run):
    """Bug: it was noticed at the first save."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints must be a directory"):
        find_checkpoint(run)


def test_a_run_killed_between_a_checkpoint_and_its_checksums_goes_on(finished, run, config):
    """And where every checkpoint lacks them, the newest is read as it is."""
    (run / "checkpoints" / "12" / CHECKSUMS_FILE).unlink()
    assert find_checkpoint(run).step == 10
    (run / "checkpoints" / "10" / CHECKSUMS_FILE).unlink()
    assert find_checkpoint(run).step == 12
    chex.assert_trees_all_equal(load_tokenizer(finished).variables, load_tokenizer(run).variables)


def test_a_run_without_any_whole_checkpoint_is_refused_and_left_alone(run, config):
    for step in ("10", "12"):
        truncate(run / "checkpoints" / step / "state" / "manifest.ocdbt")
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    with pytest.raises(UserError, match=r"is intact \(12: state/manifest.ocdbt does not match its checksum; 10: "):
        train(config, run, devices=ONE_DEVICE)
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


@pytest.fixture
def old_run(tmp_path) -> Path:
    """Two steps of release 0.1.0, which had one network and called its variables collections."""
    shutil.unpack_archive(Path(__file__).parent / "release_0_1_0.zip", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("use", [load_tokenizer, evaluate_workdir])
def test_a_run_of_the_release_before_tasks_is_not_read(old_run, use):
    with pytest.raises(UserError) as error:
        use(old_run)
    assert str(error.value) == (
        f"--workdir={old_run} contains checkpoints written by vqjax 0.1.0, which this release cannot read; "
        "continue the run with vqjax==0.1.0, or train in another --workdir."
    )


def test_a_run_of_the_release_before_tasks_is_left_alone(old_run, config):
    before = sorted(path.stat().st_mtime_ns for path in old_run.rglob("*"))
    with pytest.raises(UserError, match=r"continue the run with vqjax==0\.1\.0, or train in another --workdir"):
        train(config, old_run, devices=ONE_DEVICE)
    assert sorted(path.stat().st_mtime_ns for path in old_run.rglob("*")) == before


def test_a_checkpoint_of_another_structure_says_what_changed(run, config, monkeypatch):
    init = VQVAETask.init

    def of_a_later_release(self, key, batch):
        state = init(self, key, batch)
        layer = state.params["generator"]["encoder"]["Conv_0"]
        layer["scale"] = layer.pop("bias")[:2]
        return state

    monkeypatch.setattr(VQVAETask, "init", of_a_later_release)
    monkeypatch.setattr(dispatch, "empty_log_sums", lambda *args: {})
    with pytest.raises(UserError) as error:
        train(config, run, devices=ONE_DEVICE)
    release = version("vqjax")
    assert str(error.value) == (
        f"The checkpoint was written by vqjax {release}, and this release cannot resume from it: "
        "params.generator.encoder.Conv_0.scale is missing; params.generator.encoder.Conv_0.bias is unknown. "
        f"Continue the run with vqjax=={release}, or train in another --workdir."
    )


def test_what_a_release_measures_first_starts_at_zero(finished, run, config, monkeypatch):
    """Names in the sums of the log may differ between the release that saved a checkpoint and the one that reads it."""
    empty = dispatch.empty_log_sums

    def of_a_later_release(*args):
        return {("new_metric" if name == "loss" else name): zero for name, zero in empty(*args).items()}

    monkeypatch.setattr(dispatch, "empty_log_sums", of_a_later_release)
    train(config, run, devices=ONE_DEVICE)
    chex.assert_trees_all_equal(load_tokenizer(finished).variables, load_tokenizer(run).variables)
