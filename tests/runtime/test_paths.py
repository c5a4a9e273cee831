"""Every argument that is a path: what a user means, or one line that refuses it, before anything is made."""

import errno
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vqjax.checkpointing import discovery
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import load_splits
from vqjax.errors import UserError
from vqjax.evaluation import EvaluationResult, load_tokens, save_tokens, write_report
from vqjax.importing.state_dict import read_state_dict
from vqjax.reporting import MetricWriter, save_png
from vqjax.runtime.files import atomic_file
from vqjax.runtime.paths import local_path
from vqjax.runtime.workdir import usable_workdir
from vqjax.training.config import load_config
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train

pytestmark = pytest.mark.usefixtures("as_users_run_it")

URLS = ["s3://bucket/run", "gs://b/r", "S3://B/R", "hdfs://host:9000/x", "https://example.org/x", "memory://run"]
URLS += ["az://c/x", "abfs://c@account/x", "file://elsewhere/x", "s3:/bucket/run"]

DOORS = {
    "workdir of training": lambda path, config: train(config, path),
    "workdir of evaluation": lambda path, config: evaluate_workdir(path),
    "exported tokens": lambda path, config: evaluate_workdir("runs", export_tokens=f"{path}/tokens.npz"),
    "tokenizer": lambda path, config: load_tokenizer(path),
    "config file": lambda path, config: load_config(f"{path}/config.py:codes=3"),
    "arrays": lambda path, config: load(source="arrays", name=f"{path}/images.npz"),
    "image folder": lambda path, config: load(source="image_folder", name=path),
    "data of training": lambda path, config: train(with_name(config, f"{path}/images.npz"), "run"),
    "tokens to write": lambda path, config: save_tokens(path, np.zeros((1, 1), int), num_codes=1, context={}),
    "tokens to read": lambda path, config: load_tokens(path),
    "state dict": lambda path, config: read_state_dict(f"{path}/x.safetensors"),
    "picture": lambda path, config: save_png(path, np.zeros((2, 2, 3), np.uint8)),
    "report": lambda path, config: write_report(path, EvaluationResult({}, {}, {}), context={}, pictures={}),
    "metrics": lambda path, config: MetricWriter(path, resume_step=None, tensorboard=False, wandb=False, config={}),
}


def load(**data):
    return load_splits(ConfigDict({"image_size": 16, **data}))


def with_name(config, name):
    config.data.name = name
    return config


# These take URLs: vqjax/runtime/remote.py.
REMOTE = {
    "workdir of training",
    "workdir of evaluation",
    "exported tokens",
    "tokenizer",
    "tokens to write",
    "tokens to read",
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("door", DOORS)
def test_urls_of_storage_that_cannot_be_reached_are_refused_in_one_line_before_anything_is_made(
    door, url, config, tmp_path, monkeypatch
):
    """Bug: --workdir=s3://bucket/run trained into a local directory called s3:, and gs:// failed at the end."""

    def without_its_package(url):
        raise ImportError(f"Install a package to access {url}")

    monkeypatch.setattr("fsspec.core.url_to_fs", without_its_package)
    monkeypatch.chdir(tmp_path)
    local = door not in REMOTE or url.startswith("file:")
    message = (
        "must be a local path, got '" if local else r"must be a path, or a URL that fsspec can open, got '.*\(Install"
    )
    with pytest.raises(UserError, match=message) as error:
        DOORS[door](url, config)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("door", ["workdir of training", "exported tokens", "image folder", "arrays", "tokens to read"])
@pytest.mark.parametrize("path", ["~nobody_of_this_name/x", "a\0b", "x" * 300])
def test_paths_that_cannot_be_are_refused_in_one_line(door, path, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        DOORS[door](path, config)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/first", "runs/first"),
        ("runs/first/", "runs/first"),
        ("~/runs", "HOME/runs"),
        ("file:///data/run", "/data/run"),
        ("file://localhost/data/my%20run", "/data/my run"),
        ("file:/data/run", "/data/run"),
        ("C:/data", "C:/data"),
        ("a name: with a colon/x", "a name: with a colon/x"),
        ("größe/日本", "größe/日本"),
        ("new\nline", "new\nline"),
    ],
)
def test_what_a_path_means(text, expected, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    assert local_path(text) == Path(expected)


def test_a_local_directory_may_look_like_a_url_where_the_path_says_that_it_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path(local_path("./s3:/x")) == tmp_path / "s3:" / "x"


@pytest.mark.full
@pytest.mark.parametrize("name", ["with a space", "größe 日本", "new\nline", "'quoted\"", "-dash", "trailing/", "a:b"])
def test_runs_live_in_directories_of_any_name(name, config, tmp_path, monkeypatch):
    """And leave nothing elsewhere; seen from another working directory as well."""
    monkeypatch.chdir(tmp_path)
    config.num_steps = config.eval_every = config.checkpoint_every = 1
    data = Path(config.data.name)
    shutil.copy(data, tmp_path / "images.npz")
    config.data.name = "images.npz"
    train(config, name, devices=jax.devices()[:1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images.npz", name.rstrip("/")])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = evaluate_workdir(f"file://{tmp_path}/{name}".replace("\n", "%0A"), export_tokens=f"../{name}/t.npz")
    assert result.metrics["images"] == len(load_tokens(tmp_path / name / "t.npz").indices) == 20
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.full
def test_a_run_may_lie_behind_links(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "disk" / "run", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(finished / "checkpoints", tmp_path / "other disk" / "checkpoints")
    (tmp_path / "disk" / "run" / "checkpoints").symlink_to(tmp_path / "other disk" / "checkpoints")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    assert evaluate_workdir(tmp_path / "link").metrics["images"] == 20
    assert (tmp_path / "link").is_symlink()


@pytest.mark.full
def test_damaged_checkpoints_are_set_aside_across_mounts(finished, tmp_path, monkeypatch):
    """Bug: where checkpoints/ was a link to another disk, renaming into damaged_checkpoints/ ended the run."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "12" / "state" / "_METADATA").write_bytes(b"")

    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", refuse)
    discovery.set_aside(tmp_path / "run", discovery.find_checkpoint(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "damaged_checkpoints").iterdir()] == ["12"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    """Bug: the link itself was replaced, and what it led to stayed old."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "tokens.npz").write_bytes(b"old")
    (tmp_path / "tokens.npz").symlink_to(tmp_path / "disk" / "tokens.npz")
    with atomic_file(tmp_path / "tokens.npz") as file:
        file.write(b"new")
    assert (tmp_path / "tokens.npz").is_symlink()
    assert (tmp_path / "disk" / "tokens.npz").read_bytes() == b"new"
    assert len(list((tmp_path / "disk").iterdir())) == 1


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    name = "x" * 251 + ".npz"
    save_tokens(tmp_path / name, np.zeros((1, 1), int), num_codes=1, context={})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_the_place_of_a_directory_is_named(config, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"--workdir must be a directory, got .*file is not one"):
            train(config, path)
    with pytest.raises(UserError, match=r"--export_tokens must be a file name that ends in \.npz"):
        evaluate_workdir(tmp_path, export_tokens=tmp_path / "file" / "tokens.npz")


@pytest.mark.parametrize("name", ["checkpoints", "eval", "tensorboard"])
def test_a_file_in_the_way_of_what_a_run_writes_is_named_before_its_first_step(config, tmp_path, name):
    """Bug: a file called eval ended the run after its last step."""
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name} must be a directory; move away what is in its place"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "reconstructions.png"])
def test_a_directory_in_the_place_of_a_file_is_named_before_the_first_step(config, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} must be a file; move away what is in its place"):
        train(config, tmp_path)


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usable_workdir("~/run") == tmp_path / "run"
    np.savez(tmp_path / "images.npz", train=np.zeros((3, 8, 8), np.uint8), test=np.ones((3, 8, 8), np.uint8))
    assert len(load(source="arrays", name="~/images.npz").train) == 3
    save_tokens("~/tokens.npz", np.zeros((1, 1), int), num_codes=1, context={})
    assert load_tokens("~/tokens.npz").num_codes == 1


def test_a_config_file_may_have_a_colon_in_its_path(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "own.py").write_text(
        "from vqjax.training.config import base_config\n"
        "def get_config(*, steps: int = 3):\n"
        "    config = base_config()\n"
        "    config.num_steps = steps\n"
        "    return config\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (f"{tmp_path}/a:b/own.py", f"file://{tmp_path}/a:b/own.py", "~/a:b/own.py"):
        assert load_config(path).num_steps == 3
        assert load_config(f"{path}:steps=5").num_steps == 5
