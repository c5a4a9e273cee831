"""A run that is killed, damaged and started again, over and over, ends bit for bit as if it had been left alone.

``pytest tests/training/test_soak.py --kills=200 --soak_seed=1`` for more of them, and others.
"""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from helpers.commands import TINY, call, save_images, start
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.integrity import CHECKSUMS_FILE, find_damage

CHECKPOINT_EVERY = 7
OF_CLIPS = [
    "--config.data.source=video_arrays",
    "--config.data.image_size=16",
    "--config.data.frames=3",
    "--config.data.random_start",
    "--config.data.flip",
    "--config.model.name=causal_video",
    "--config.model.channels=32",
    "--config.model.multipliers=1",
    "--config.model.num_res_blocks=1",
    "--config.model.middle_attention=False",
    "--config.model.patch_size=4",
    "--config.model.time_scalings=1",
]
NOT_OF_CLIPS = ("--config.data", "--config.model.width")

pytestmark = pytest.mark.full


@pytest.fixture(scope="module", params=["images", "clips"])
def kind(request) -> str:
    return request.param


def random_clips(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def kills(request, kind) -> int:
    kills = request.config.getoption("--kills")
    return kills if kind == "images" else max(1, kills // 4)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, kind, kills) -> list[str]:
    """Long enough that the kills come before its end."""
    directory = tmp_path_factory.mktemp(kind)
    if kind == "images":
        data = [f"--config.data.name={save_images(directory)}"]
    else:
        np.savez(directory / "clips.npz", train=random_clips(24), test=random_clips(4))
        data = [f"--config.data.name={directory / 'clips.npz'}", *OF_CLIPS]
    return [
        *(argument for argument in TINY if kind == "images" or not argument.startswith(NOT_OF_CLIPS)),
        *data,
        f"--config.num_steps={60 + 25 * kills}",
        f"--config.checkpoint_every={CHECKPOINT_EVERY}",
        "--config.keep_checkpoints=3",
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    status, _, err = call("train.py", f"--workdir={workdir}", *arguments)
    assert status == 0, err
    return workdir


def damage_newest(workdir: Path, chance: random.Random) -> str | None:
    """Harms one file of the newest checkpoint, if it is whole and one with checksums stands before it."""
    steps = sorted(int(path.parent.name) for path in workdir.glob(f"checkpoints/*/{CHECKSUMS_FILE}"))
    if len(steps) < 2:
        return None
    newest = workdir / "checkpoints" / str(steps[-1])
    if find_damage(newest) is not None:
        # The process after the last damage was killed before it looked.
        return None
    path = chance.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    kind = chance.choice(["truncated", "flipped", "deleted", "emptied"])
    if kind == "truncated":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif kind == "deleted":
        path.unlink()
    else:
        shutil.rmtree(newest / "state")
    return f"{kind}: {path.relative_to(workdir)}"


def kill_at_random(process: subprocess.Popen, chance: random.Random) -> None:
    """During start-up, or after the first steps."""
    sign, longest = chance.choice([("vqjax: ", 3.0), ("step ", 0.2), ("step ", 2.0), ("step ", 2.0)])
    for line in process.stderr:
        if line.startswith(sign):
            break
    time.sleep(chance.uniform(0.0, longest))
    process.kill()
    process.communicate()


def test_kills_and_damage_leave_no_trace(undisturbed, arguments, kills, request, tmp_path):
    chance = random.Random(request.config.getoption("--soak_seed"))
    workdir, survived, damages = tmp_path / "run", 0, []
    for _ in range(kills):
        process = start("train.py", f"--workdir={workdir}", *arguments)
        kill_at_random(process, chance)
        assert process.returncode in (-signal.SIGKILL, 0)
        survived += process.returncode == -signal.SIGKILL
        if chance.random() < 0.4 and (damage := damage_newest(workdir, chance)):
            damages.append(damage)
    status, _, err = call("train.py", f"--workdir={workdir}", *arguments)
    assert status == 0, err
    print(f"{survived} kills and these damages survived: {damages}")
    chex.assert_trees_all_equal(load_tokenizer(undisturbed).variables, load_tokenizer(workdir).variables)
    assert (undisturbed / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    assert survived >= 0.8 * kills
