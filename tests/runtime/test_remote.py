"""Runs in remote storage; fsspec's storage in memory stands for it, which no file system of the host can see."""

import os
from pathlib import Path

import chex
import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile

from vqjax import UserError
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data.token_file import load_tokens, save_tokens
from vqjax.runtime.remote import local_copy, shown
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

STORAGE = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    STORAGE.store.clear()
    STORAGE.pseudo_dirs[:] = [""]


def names(of=""):
    return sorted(place.removeprefix("/bucket/run/") for place in STORAGE.find(f"/bucket/run/{of}"))


def test_what_changed_is_uploaded_and_checksums_last(monkeypatch):
    order = []
    monkeypatch.setattr(STORAGE, "put_file", lambda file, place: order.append(place) or STORAGE.pipe_file(place, b""))
    with local_copy("memory://bucket/run", "--workdir") as (directory, upload):
        finished = ("checkpoints/8/SHA256SUMS", "checkpoints/8/z", "config.json")
        for name in (*finished, ".lock", "checkpoints/9.orbax-checkpoint-tmp-1/a"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(name)
        upload()
        uploaded = ["/bucket/run/checkpoints/8/z", "/bucket/run/config.json", "/bucket/run/checkpoints/8/SHA256SUMS"]
        assert order == uploaded
        upload()
        assert order == uploaded
        (directory / "config.json").write_text("changed")
        (directory / "checkpoints/8/z").unlink()
    assert order == [*uploaded, "/bucket/run/config.json"]
    assert names() == ["checkpoints/8/SHA256SUMS", "config.json"]


def test_files_that_no_run_has_put_there_stay(tmp_path):
    STORAGE.pipe_file("/bucket/run/notes.txt", b"mine")
    with local_copy("memory://bucket/run", "--workdir") as (directory, _):
        assert (directory / "notes.txt").read_text() == "mine"
        STORAGE.pipe_file("/bucket/run/later.txt", b"mine as well")
    assert names() == ["later.txt", "notes.txt"]
    assert list(tmp_path.iterdir()) == []


def test_reading_a_run_changes_nothing_in_its_storage():
    """Bug: locks and what another process was writing were removed, and storage to read from alone was refused."""
    others = (".lock", "checkpoints/9.orbax-checkpoint-tmp-1/a", "eval/.report.md.partial")
    for name in ("config.json", *others):
        STORAGE.pipe_file(f"/bucket/run/{name}", b"{}")
    with local_copy("memory://bucket/run", "--workdir") as (directory, _):
        assert [file.name for file in directory.iterdir()] == ["config.json"]
    assert names() == sorted(["config.json", *others])


def test_no_file_is_written_outside_of_the_copy(tmp_path):
    """Bug: names with ``..`` in an archive or a bucket were followed."""
    STORAGE.store["/bucket/run/../../evil.txt"] = MemoryFile(STORAGE, "x", b"evil")
    with (
        pytest.raises(UserError, match=r"--workdir must hold files below 'memory://bucket/run', got '../../evil.txt'"),
        local_copy("memory://bucket/run", "--workdir"),
    ):
        pass
    assert list(tmp_path.rglob("evil.txt")) == []


def test_nothing_is_lost_where_an_upload_fails(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("403")

    def write():
        with local_copy("memory://bucket/run", "--workdir") as (directory, _):
            (directory / "codes").write_text("1 2 3")
            monkeypatch.setattr(STORAGE, "put_file", refuse)

    with pytest.raises(UserError, match=r"^--workdir must be storage that can be reached, .* \(403\); it is kept as"):
        write()
    (kept,) = tmp_path.iterdir()
    assert (kept / "codes").read_text() == "1 2 3"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://bucket/run", "or a URL that fsspec can open, got 'nowhere://bucket/run' .*Protocol not known"),
        ("memory://bucket/file", r"must be storage that can be reached, got 'memory://bucket/file' \(it is a file\)"),
        (Path("nowhere://bucket/run"), "got 'nowhere://bucket/run'"),
        ("nowhere:///bucket/run", "got 'nowhere:///bucket/run'"),
        ("nowhere::memory://bucket", "got 'nowhere::memory://bucket'"),
        ("reference://bucket", "or a URL that fsspec can open, got 'reference://bucket'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(url, message, config, tmp_path):
    STORAGE.pipe_file("/bucket/file", b"")
    for act in (lambda: train(config, url), lambda: evaluate_workdir(url), lambda: load_tokenizer(url)):
        with pytest.raises(UserError, match=message) as error:
            act()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_written_and_read():
    indices = np.array([[0, 3], [2, 1]])
    save_tokens("memory://bucket/tokens.npz", indices, num_codes=4, context={})
    np.testing.assert_array_equal(load_tokens("memory://bucket/tokens.npz").indices, indices)
    with pytest.raises(UserError, match=r"path='memory://bucket/none\.npz' does not exist"):
        load_tokens("memory://bucket/none.npz")


def test_a_copy_is_made_once_at_a_time(tmp_path):
    with local_copy("memory://bucket/run", "--workdir") as (outer, _):
        with local_copy("memory://bucket/run", "--workdir") as (inner, upload):
            (inner / "codes").write_text("1 2 3")
            upload()
            assert names() == ["codes"]
        assert inner == outer
        assert outer.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_messages_name_the_url():
    with pytest.raises(
        UserError, match=r"^memory://bucket/run contains no checkpoint; .* --workdir=memory://bucket/run, "
    ):
        load_tokenizer("memory://bucket/run")
    with local_copy("memory://bucket/run/", "--workdir") as (directory, _):
        assert shown(directory / "eval" / "report.md") == "memory://bucket/run/eval/report.md"
        assert shown(directory) == "memory://bucket/run"
        assert shown(Path("elsewhere")) == "elsewhere"


@pytest.mark.full
def test_a_run_is_that_of_a_local_directory(config, tmp_path):
    """Ended, continued to a greater length, evaluated and loaded."""
    url, local = "memory://bucket/run", tmp_path / "run"
    for workdir in (local, url):
        for config.num_steps in (7, 12):
            result = train(config, workdir, devices=jax.devices()[:1])
    chex.assert_trees_all_equal(load_tokenizer(url).variables, load_tokenizer(local).variables)
    files = {path.relative_to(local) for path in local.rglob("*") if path.is_file()} - {Path(".lock")}
    # Names of chunks of arrays are drawn at random.
    assert {Path(name).parts[:2] for name in names()} == {file.parts[:2] for file in files}
    assert STORAGE.cat("/bucket/run/metrics.jsonl") == (local / "metrics.jsonl").read_bytes()
    again = evaluate_workdir(url, export_tokens="memory://bucket/tokens.npz")
    assert again.metrics == pytest.approx(result.metrics, rel=1e-5)
    assert len(load_tokens("memory://bucket/tokens.npz").indices) == 20
    assert "eval/report.md" in names()
    assert [path for path in os.listdir(tmp_path) if path.startswith("vqjax-")] == []
