"""Several processes train one model as one process does, and end and begin again together."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from helpers.networks import save_resnet
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.integrity import CHECKSUMS_FILE
from vqjax.data import to_model_range
from vqjax.evaluation import load_tokens
from vqjax.evaluation.features import FeatureNetwork
from vqjax.training.evaluate import evaluate_workdir
from vqjax.training.loop import train
from vqjax.training.tokens import write_tokens

ONE_DEVICE = jax.devices()[:1]

# Trains as train.py does, and prints how many rows of a batch it has read at a time.
PROCESS = """
import sys
from vqjax.data import feeds
from vqjax.training.cli import main

read_many, rows = feeds.read_many, set()

def read_and_count(dataset, indices, *generators):
    rows.add(len(indices))
    return read_many(dataset, indices, *generators)

feeds.read_many = read_and_count
main(["train", *sys.argv[1:]])
print("rows of a batch:", rows, file=sys.stderr)
"""


def start(number: int, config: ConfigDict, *workdirs: Path, others: ConfigDict | None = None) -> list[subprocess.Popen]:
    """As many processes as asked for, which take the directories in turn; all but the first may have another config."""
    flags = []
    for i, workdir in zip(range(number), itertools.cycle(workdirs)):
        of_process = config if i == 0 else others or config
        # Beside the directory, which must not be there before the run.
        file = workdir.with_name(f"config_of_process_{i}.py")
        file.write_text(f"def get_config():\n    return {of_process.to_dict()!r}\n")
        flags.append([f"--config={file}", f"--workdir={workdir}"])
    return joined("-c", PROCESS, flags=flags)


def joined(*command: str, flags: Sequence[Sequence[str]], caches: Sequence[Path] = ()) -> list[subprocess.Popen]:
    """Processes of a command that join each other, each with flags of its own, and with a cache if there are some."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    }
    join = [f"--coordinator_address={address}", f"--num_processes={len(flags)}"]
    return [
        subprocess.Popen(
            [sys.executable, *command, *of_process, *join, f"--process_id={i}"],
            env=environment | ({"XDG_CACHE_HOME": str(caches[i])} if caches else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, of_process in enumerate(flags)
    ]


def wait_for_step(processes: list[subprocess.Popen], workdir: Path, step: int) -> None:
    """Until there is a checkpoint of that step or a later one."""
    deadline = time.monotonic() + 120
    while not any(int(path.parent.name) >= step for path in workdir.glob(f"checkpoints/*/{CHECKSUMS_FILE}")):
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise AssertionError(f"there is no checkpoint of step {step}: {end(processes, seconds=1)}")
        time.sleep(0.05)


def end(processes: list[subprocess.Popen], seconds: int = 240) -> list[tuple[int, str]]:
    """Exit status and standard error of each."""
    try:
        for process in processes:
            process.wait(seconds)
    finally:
        for process in processes:
            process.kill()
        errors = [process.communicate()[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.fixture
def config(config):
    config.num_steps, config.checkpoint_every, config.eval_every, config.log_every = 50, 5, 1000, 5
    # An odd number of held-out images, read with the batches of training.
    config.data.resident_limit_mb = 0
    config.task.kmeans_init = True
    return config


def endless(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.num_steps = 10**6
    return config


@pytest.fixture
def of_one(config, tmp_path) -> Path:
    train(config, tmp_path / "one", devices=ONE_DEVICE)
    return tmp_path / "one"


def assert_same_run(one: Path, other: Path, images_file: str) -> None:
    tokenizers = [load_tokenizer(workdir) for workdir in (one, other)]
    params, codebooks = zip(
        *((t.variables["params"], t.variables["codebook"]["quantizer"]) for t in tokenizers), strict=True
    )
    chex.assert_trees_all_close(*params, atol=1e-5, rtol=0)
    # A unit in the last place for each of the 50 steps: a moving average may be fused in one program alone.
    np.testing.assert_allclose(codebooks[0]["counts"], codebooks[1]["counts"], rtol=1e-5)
    images = to_model_range(np.load(images_file)["test"])
    np.testing.assert_array_equal(*(tokenizer.encode(images) for tokenizer in tokenizers))
    metrics = [json.loads((workdir / "eval" / "metrics.json").read_text())["metrics"] for workdir in (one, other)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    logs = [(workdir / "metrics.jsonl").read_text().splitlines() for workdir in (one, other)]
    assert [json.loads(line)["step"] for line in logs[0]] == [json.loads(line)["step"] for line in logs[1]]


@pytest.mark.full
def test_eight_devices_train_like_one(config, of_one, tmp_path):
    train(config, tmp_path / "eight", devices=jax.devices())
    assert_same_run(of_one, tmp_path / "eight", config.data.name)


@pytest.mark.full
@pytest.mark.parametrize(("number", "then"), [(2, 2), (4, 4), (2, 4), (4, 1)])
def test_processes_killed_and_started_again_end_like_one(config, of_one, tmp_path, number, then):
    """Also in another number. Each reads its own rows of every batch."""
    workdir = tmp_path / "run"
    processes = start(number, endless(config), workdir)
    wait_for_step(processes, workdir, 5)
    processes[-1].kill()
    *others, (_, obituary) = end(processes, seconds=60)
    assert f"process {number - 1} of {number} has died" in obituary
    for status, error in others:
        assert status != 0
        assert error.splitlines()[-1].endswith("the run resumes from its last checkpoint.")

    config.num_steps = max(config.num_steps, load_tokenizer(workdir).step + 1)
    train(config, of_one, devices=ONE_DEVICE)
    for status, error in end(start(then, config, workdir)):
        assert status == 0, error
        assert f"rows of a batch: {{{config.batch_size // then}}}" in error
    assert_same_run(of_one, workdir, config.data.name)


@pytest.mark.full
@pytest.mark.parametrize("number", [2, 4])
def test_a_signal_to_one_process_stops_all_at_the_same_step(config, tmp_path, number):
    """And no step is lost."""
    workdir = tmp_path / "run"
    processes = start(number, endless(config), workdir)
    wait_for_step(processes, workdir, 5)
    processes[-1].terminate()
    for status, error in end(processes):
        assert status == 128 + signal.SIGTERM
        assert f"stopped at step {load_tokenizer(workdir).step};" in error.splitlines()[-1]


@pytest.mark.full
def test_processes_without_a_common_directory_are_told(config, of_one, tmp_path):
    for status, error in end(start(2, config, tmp_path / "nothing", of_one)):
        assert status == 2
        assert "error: process 1 has a different newest checkpoint from process 0. Pass the same" in error


@pytest.mark.full
def test_processes_with_two_new_directories_are_told(config, tmp_path):
    """Bug: they waited for each other inside of the first save."""
    for status, error in end(start(2, config, tmp_path / "one", tmp_path / "other")):
        assert status == 2
        assert "error: process 1 has a different --workdir from process 0. Pass the same" in error


@pytest.mark.full
def test_processes_with_other_arguments_are_told(config, tmp_path):
    """Bug: each trained with its own learning rate, and the first one's config was kept with what came of it."""
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate *= 2
    for status, error in end(start(2, config, tmp_path / "run", others=other)):
        assert status == 2
        assert "error: process 1 has a different config from process 0. Start all of them with the same" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_processes_with_other_images_are_told(config, tmp_path):
    """In files of one name, as a directory that each machine has a copy of."""
    content = dict(np.load(config.data.name))
    content["train"] = 255 - content["train"]
    other = config.copy_and_resolve_references()
    other.data.name = str(tmp_path / "other" / "images.npz")
    (tmp_path / "other").mkdir()
    np.savez(other.data.name, **content)
    for status, error in end(start(2, config, tmp_path / "run", others=other)):
        assert status == 2
        assert "error: process 1 has a different" in error


@pytest.mark.full
@pytest.mark.parametrize("number", [2, 4])
def test_processes_evaluate_like_one(finished, tmp_path, number):
    """Twenty images in batches of eight, of which two or four processes have a part each; process 0 alone reports."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    network = save_resnet(tmp_path / "network.safetensors")
    alone = evaluate_workdir(workdir, features=str(network), protocols=("rfid_val", "rfid_train")).metrics
    tokens, name = tmp_path / "tokens.npz", FeatureNetwork.from_file(network).name
    flags = [f"--workdir={workdir}", f"--features={network}", "--protocols=rfid_val,rfid_train"]
    processes = joined("eval.py", flags=number * [[*flags, f"--export_tokens={tokens}"]])
    assert [status for status, _ in end(processes)] == number * [0]
    together = json.loads((workdir / "eval" / "metrics.json").read_text())["metrics"]
    assert together.pop(f"rkd_{name}_val_deviation") is alone.pop(f"rkd_{name}_val_deviation") is None
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-9)
    assert together["images"] == len(load_tokens(tokens).indices) == 20


@pytest.mark.full
def test_processes_write_the_tokens_that_one_writes(finished, tmp_path):
    """Shards of which each process writes every second one."""
    flags = [f"--workdir={finished}", "--flip", "--crops=2", "--shard_size=10", "--batch_size=8"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    write_tokens(finished, out=alone, flip=True, crops=2, shard_size=10, batch_size=8)
    processes = joined("-m", "vqjax", "tokens", flags=2 * [[*flags, f"--out={together}"]])
    assert [status for status, _ in end(processes)] == [0, 0]
    one, both = ({file.name: file.read_bytes() for file in place.iterdir()} for place in (alone, together))
    assert one == both
    assert len(both) == 1 + 4 * 5 + 2


@pytest.mark.full
def test_processes_with_a_cache_each_measure_training_images_together(finished, tmp_path, monkeypatch):
    """Bug: the main process alone took statistics out of its cache, and the others waited for it."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    options = {"features": str(save_resnet(tmp_path / "network.safetensors")), "protocols": ("rfid_train",)}
    caches = [tmp_path / f"cache_{number}" for number in range(2)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches[0]))
    name = f"rfd_{FeatureNetwork.from_file(options['features']).name}_train"
    alone = evaluate_workdir(workdir, **options).metrics[name]
    flags = [f"--workdir={workdir}", f"--features={options['features']}", "--protocols=rfid_train"]
    for told in ("measuring the 48 images", ""):
        ended = end(joined("eval.py", flags=2 * [flags], caches=caches))
        assert [status for status, _ in ended] == [0, 0], ended
        assert told in ended[0][1]
        together = json.loads((workdir / "eval" / "metrics.json").read_text())["metrics"]
        assert together[name] == pytest.approx(alone, rel=1e-5)
    assert "measuring" not in ended[0][1]
