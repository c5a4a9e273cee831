"""Files that PyTorch writes, with objects of libraries that are not there, are read without them."""

import argparse
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vqjax.importing.state_dict import read_state_dict

torch = pytest.importorskip("torch")

RECORDED = Path(__file__).parents[1] / "importing" / "torch_files"


@contextmanager
def stand_in_classes():
    """Classes of libraries, which exist only while a file is written."""
    modules = {
        "pytorch_lightning.callbacks.model_checkpoint": {"ModelCheckpoint": object},
        "pytorch_lightning.utilities.parsing": {"AttributeDict": dict},
        "omegaconf.dictconfig": {"DictConfig": object},
        "omegaconf.listconfig": {"ListConfig": list},
        "src.train_utils.schedulers": {"WarmupCosineFlatSchedule": object},
    }
    made = {}
    for place, classes in modules.items():
        for name in [".".join(place.split(".")[: i + 1]) for i in range(place.count(".") + 1)]:
            made.setdefault(name, types.ModuleType(name))
        for name, base in classes.items():
            setattr(made[place], name, type(name, (base,), {"__module__": place}))
    sys.modules.update(made)
    try:
        yield {
            name: kind for place, kinds in modules.items() for name, kind in vars(made[place]).items() if name in kinds
        }
    finally:
        for name in made:
            del sys.modules[name]


def write(path, legacy):
    """A checkpoint like one of Lightning before 1.5, whose callbacks are keyed by classes."""
    weight = torch.arange(6.0).reshape(2, 3) / 4
    state = OrderedDict(
        weight=torch.nn.Parameter(weight),
        transposed=weight.T,
        tied=weight[1],
        bias=torch.zeros(0),
        half=torch.tensor([1.5, -2]).half(),
        bfloat16=torch.tensor([3.0, -0.25]).bfloat16(),
        steps=torch.tensor(7),
    )
    state._metadata = OrderedDict(version=1)
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with stand_in_classes() as kinds:
        schedule = kinds["WarmupCosineFlatSchedule"]()
        schedule.optimizer = optimizer
        config = kinds["DictConfig"]()
        config.__dict__["_content"] = kinds["ListConfig"]([1, 2])
        checkpoint = {
            "epoch": 3,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {kinds["ModelCheckpoint"]: {"best_model_score": torch.tensor(0.5), "best": np.float64(2)}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [schedule],
            "hyper_parameters": kinds["AttributeDict"](config=config, lr=1e-3),
            "args": argparse.Namespace(f=8, path=Path("x")),
            "state_dict": state,
        }
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize(("name", "legacy"), [("lightning.ckpt", False), ("legacy.pth", True)])
def test_a_file_written_now_is_read_like_the_recorded_one(tmp_path, name, legacy):
    write(tmp_path / name, legacy)
    now, recorded = read_state_dict(tmp_path / name), read_state_dict(RECORDED / name)
    assert now.keys() == recorded.keys()
    for key, value in recorded.items():
        np.testing.assert_array_equal(now[key], value)
    with pytest.raises(Exception, match="pytorch_lightning"):
        torch.load(tmp_path / name, weights_only=True)
