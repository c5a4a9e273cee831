"""The commands, run as their users run them."""

import functools
import inspect
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.commands import ROOT, TINY, call, save_images, start
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.data import to_model_range
from vqjax.errors import UserError
from vqjax.evaluation import load_tokens
from vqjax.runtime.signature import Call
from vqjax.training.cli import COMMANDS, _call, _command


@pytest.fixture(scope="module")
def images_file(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images_file, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    status, out, err = call("train.py", f"--workdir={workdir}", *run_of(images_file))
    assert status == 0, err
    assert "psnr" in out
    assert "step 60/60 (100%)" in err
    return workdir


def run_of(images_file: Path) -> list[str]:
    return [*TINY, f"--config.data.name={images_file}", "--config.num_steps=60", "--config.checkpoint_every=7"]


@pytest.mark.full
def test_sigterm_saves_and_ends_with_its_exit_status(images_file, tmp_path):
    process = start("train.py", f"--workdir={tmp_path}", *run_of(images_file), "--config.num_steps=1000000")
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.terminate()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "the same command continues from there" in err
    assert load_tokenizer(tmp_path).step >= 1


def test_sigint_before_there_is_anything_to_save_ends_the_run_at_once(images_file, tmp_path):
    """Bug: the exception that it was got lost in a callback of JAX, and the run went on."""
    process = start("train.py", f"--workdir={tmp_path}", *run_of(images_file), "--config.num_steps=1000000")
    assert process.stderr.readline().startswith("vqjax: ")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].count("Traceback") == 0
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.full
def test_a_run_nobody_listens_to_goes_on(finished, images_file, tmp_path):
    """Bug: train.py 2>&1 | head -1 ended the run at its second line."""
    shutil.copytree(finished, tmp_path / "run")
    process = start("train.py", f"--workdir={tmp_path}/run", *run_of(images_file), "--config.num_steps=61")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(240) == 0
    assert load_tokenizer(tmp_path / "run").step == 61


@pytest.mark.full
@pytest.mark.parametrize(("outlives", "status"), [(False, 128 + signal.SIGHUP), (True, 0)])
def test_a_run_whose_terminal_is_closed_saves_and_under_nohup_goes_on(
    finished, images_file, tmp_path, outlives, status
):
    """Bug: SIGHUP ended the run, and under nohup its next line did, before the checkpoint."""
    run = shutil.copytree(finished, tmp_path / "run")
    num_steps = 200 if outlives else 1_000_000
    theirs, ours = pty.openpty()
    arguments = (f"--workdir={run}", *run_of(images_file), f"--config.num_steps={num_steps}")
    shown = b""
    with start("train.py", *arguments, terminal=ours, outlives_terminal=outlives) as process:
        try:
            while b"61/" not in shown:
                shown += os.read(theirs, 1024)
            os.close(ours)
            os.close(theirs)
            assert process.wait(240) == status
        finally:
            process.kill()
    step = load_tokenizer(run).step
    assert step == num_steps if outlives else step > 60


def test_eval_prints_the_table_and_exports_tokens_that_decode_to_the_reconstructions(finished, images_file, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "eval" / "metrics.json").read_text()
    tokens_file = run / "tokens.npz"
    status, out, err = call("eval.py", f"--workdir={run}", f"--export_tokens={tokens_file}")
    assert status == 0, err
    assert {"psnr", "ssim", "perplexity_split", "bits_per_image"} <= {line.split(" ")[0] for line in out.splitlines()}
    # Evaluating a checkpoint gives what training reported of it.
    assert json.loads((run / "eval" / "metrics.json").read_text())["metrics"] == pytest.approx(
        json.loads(before)["metrics"], rel=1e-5
    )
    tokenizer, tokens = load_tokenizer(run), load_tokens(tokens_file)
    images = to_model_range(np.load(images_file)["test"])
    np.testing.assert_array_equal(tokens.indices, tokenizer.encode(images))
    reconstruction = tokenizer.model.apply(tokenizer.variables, images, train=False).reconstruction
    np.testing.assert_allclose(tokenizer.decode(jnp.asarray(tokens.indices)), reconstruction, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "train.py",
            ["--config.quantizer.num_code=5"],
            "quantizer.num_code is unknown; did you mean 'num_codes'?",
        ),
        (
            "train.py",
            ["--config.quantizer.num_codes=many"],
            "quantizer.num_codes must be an integer, got 'many'.",
        ),
        ("train.py", ["--config.quantizer.num_codes=0"], "config.quantizer.num_codes"),
        ("train.py", ["--config.quantizer=vq"], "config.quantizer is a group"),
        (
            "train.py",
            ["--config=configs/nowhere.py"],
            "got 'configs/nowhere.py'; use one of 'cifar10', ",
        ),
        ("train.py", [f"--config={ROOT}/configs/cifar10.py:cods=3"], "did you mean 'codes'?"),
        ("train.py", [f"--config={ROOT}/configs/cifar10.py"], "TFDS_DATA_DIR"),
        ("train.py", ["--config.data.source=image_folder", "--config.data.name=EMPTY"], "EMPTY without any .jpeg"),
        ("train.py", ["--config.batch_size=100000"], "the number of training images, got 100000"),
        (
            "train.py",
            ["--config.optimizer.name=adamx"],
            "optimizer.name='adamx' is unknown; did you mean 'adam'?",
        ),
        ("train.py", ["--config.batch_size=None"], "config.batch_size must be an integer, got None."),
        ("train.py", ["--wrokdir=runs"], "--wrokdir is unknown; did you mean '--workdir'?"),
        ("train.py", ["--config.seed", "3"], "argument '3' is not expected; write --name=value."),
        ("train.py", ["configs/cifar10.py"], "argument 'configs/cifar10.py' is not expected"),
        ("train.py", ["--config=BROKEN"], "BROKEN, line 2 cannot be used: ZeroDivisionError: division by zero"),
        ("train.py", ["--workdir=BROKEN/run"], "BROKEN is not one"),
        ("train.py", ["--workdir=nowhere://bucket/run"], "or a URL that fsspec can open, got 'nowhere://bucket/run'"),
        ("train.py", ["--config=gs://bucket/c.py:codes=3"], "--config must be a local path, got 'gs://bucket/c.py'"),
        ("train.py", ["--config.data.source=arrays", "--config.data.name=s3://b/x.npz"], "must be a local path, got"),
        ("train.py", ["--num_processes=2"], "--coordinator_address is missing; pass all of"),
        ("train.py", ["--coordinator_address=here", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
        ("train.py", ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
        ("train.py", ["--distributed"], "the processes of this run cannot find each other (coordinator_address"),
        ("eval.py", [], "contains no checkpoint"),
        ("eval.py", ["--export_tokens=tokens.txt"], "--export_tokens must be a file name that ends in .npz"),
        ("eval.py", ["--export_tokens=nowhere://b/t.npz"], "fsspec can open, got 'nowhere://b/t.npz'"),
        ("eval.py", ["--best", "--step=3"], "--step must be left out with --best, got 3"),
        ("eval.py", ["--splt=train"], "--splt is unknown; did you mean '--split'?"),
        ("eval.py", ["--split=trian"], "--split='trian' is unknown; did you mean 'train'?"),
        ("eval.py", ["--step=newest"], "--step must be an integer or None, got 'newest'."),
        ("eval.py", ["--config.seed=1"], "--config.seed is unknown"),
    ],
)
def test_a_mistake_ends_with_one_line_and_leaves_nothing_behind(tmp_path, script, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").write_text("def get_config():\n    return 1 / 0\n")
    arguments = [re.sub("EMPTY|BROKEN", lambda name: str(tmp_path / name[0]), argument) for argument in arguments]
    status, out, err = call(script, f"--workdir={tmp_path}/run", *arguments, TFDS_DATA_DIR=str(tmp_path))
    assert status == 2
    assert out == ""
    *notes, error = err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert all(note.startswith("vqjax: ") for note in notes)
    assert not (tmp_path / "run").exists()


def uses(command):
    return [use for use in (command, command.other) if use]


def test_a_value_that_is_named_like_a_flag_is_none(tmp_path, monkeypatch):
    """Bug: `vqjax eval --workdir output` was refused, as --workdir and --output do not go together."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="output contains no checkpoint"):
        _command("eval", "--workdir", "output")


def test_vqjax_lists_its_commands_and_loads_none_of_them():
    code = "import sys; from vqjax.training.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, command in COMMANDS.items():
        for use in uses(command):
            assert f"vqjax {name} {use.example}" in process.stdout
    assert not {"optax", "orbax", "tensorflow_datasets", "ml_collections"} & set(process.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_describes_every_flag(name):
    status, out, err = call("vqjax", name, "--help")
    assert (status, err) == (0, "")
    for use in uses(COMMANDS[name]):
        for flag in Call(use.imported()).fields:
            assert re.search(rf"(--{flag} (VALUE|\[VALUE\])|{flag.upper()})\s+\S", out), flag
        assert f"vqjax {name} {use.example}" in out


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_a_call_of_its_function(name):
    """Bug: functions with arguments by place alone, as those of plot and convert, were called with names."""
    for use in filter(None, (COMMANDS[name], COMMANDS[name].other)):
        function, calls = use.imported(), []

        @functools.wraps(function)
        def recorded(*args, function=function, calls=calls, **kwargs):
            inspect.signature(function).bind(*args, **kwargs)
            calls.append(function)

        _call(recorded, f"vqjax {name}", use.example, shlex.split(use.example.partition(">")[0]))
        assert calls == [function]


@pytest.mark.full
def test_vqjax_is_train_py_and_eval_py(images_file, tmp_path):
    run = [*run_of(images_file), "--config.num_steps=2"]
    status, out, err = call("vqjax", "train", f"--workdir={tmp_path}/run", *run)
    assert status == 0, err
    status, again, err = call("vqjax", "eval", f"--workdir={tmp_path}/run")
    assert status == 0, err
    assert [line for line in out.splitlines() if line.startswith("psnr")] == [
        line for line in again.splitlines() if line.startswith("psnr")
    ]


@pytest.fixture(scope="module")
def completion(tmp_path_factory) -> Path:
    status, script, err = call("vqjax", "completion")
    assert (status, err) == (0, "")
    file = tmp_path_factory.mktemp("completion") / "vqjax"
    file.write_text(script)
    return file


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["to"], ["tokens"]),
        (["sample", "--num"], ["--num=", "--num_steps="]),
        (["plot", ""], ["--workdir=", "--output=", "--images="]),
        (["train", "--config", "=", "quick"], ["quickstart"]),
        (["train", "--config=quick"], ["--config=quickstart"]),  # zsh
        (["train", "--workdir", "="], []),  # files
        (["import", "--config", "=", "quick"], []),
    ],
)
def test_commands_flags_and_configs_are_completed(completion, words, completed):
    quoted = " ".join(f"'{word}'" for word in ["vqjax", *words])
    shown = f"source {completion}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _vqjax; echo ${{COMPREPLY[@]}}"
    process = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert process.stdout.split() == completed


@pytest.mark.full
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "'trian' is not a command of vqjax; did you mean 'train'?"),
        (
            ["--workdir=x"],
            "'--workdir=x' is not a command of vqjax; "
            "use one of 'completion', 'convert', 'eval', 'import', 'plot', 'reconstruct', 'sample', 'share', 'stats', "
            "'tokens', 'train'.",
        ),
        (["eval"], "--workdir is missing; it must be a string."),
        (["eval", "--real=photographs"], "--fake is missing; it must be a string."),
        (["eval", "--workdir=x", "--real=y"], "--workdir and --real do not go together; see vqjax eval --help."),
    ],
)
def test_a_command_that_is_not_there_is_refused(arguments, message):
    status, out, err = call("vqjax", *arguments)
    assert (status, out, err) == (2, "", f"error: {message}\n")


@pytest.mark.full
def test_another_model_is_refused_and_the_run_is_left_as_it_was(finished, images_file):
    before = sorted(path.stat().st_mtime_ns for path in finished.rglob("*"))
    status, _, err = call("train.py", f"--workdir={finished}", *run_of(images_file), "--config.model.width=16")
    assert status == 2
    assert err == (
        f"error: config.model.width must be 8, as in the run that --workdir={finished} holds, got 16; use another "
        "--workdir to start a new run.\n"
    )
    assert sorted(path.stat().st_mtime_ns for path in finished.rglob("*")) == before


@pytest.mark.full
def test_a_full_disk_ends_the_run_with_one_line_and_an_intact_checkpoint(finished, images_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    longer = [f"--workdir={run}", *run_of(images_file), "--config.num_steps=70"]
    status, _, err = call("train.py", *longer, largest_file=20_000)
    assert status == 2
    assert "The checkpoint of step 63 could not be written to" in err.splitlines()[-1]
    assert "earlier checkpoints are unaffected" in err.splitlines()[-1]
    chex.assert_trees_all_equal(load_tokenizer(finished).variables, load_tokenizer(run).variables)
    status, _, err = call("train.py", *longer)
    assert status == 0, err
    assert "resuming at step 60" in err
    status, _, err = call("eval.py", f"--workdir={run}", largest_file=2_000)
    assert status == 2
    assert err.splitlines()[-1] == f"error: [Errno 27] File too large: '{run}/eval/reconstructions.png'"


def test_a_run_without_a_whole_checkpoint_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").rglob("_METADATA"):
        path.write_bytes(b"")
    status, _, err = call("eval.py", f"--workdir={tmp_path}/run")
    assert status == 2
    assert "run/checkpoints is intact (60: state/_METADATA does not match its checksum; 56: " in err
    assert len(err.splitlines()) == 1
