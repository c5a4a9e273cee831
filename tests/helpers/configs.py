"""The config files of the repository, for the tests that use what they describe."""

from pathlib import Path

from ml_collections import ConfigDict

from vqjax.training.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str, *overrides: str) -> ConfigDict:
    """The config of ``--config=configs/NAME.py``; a name may have arguments after a colon."""
    file, colon, arguments = name.partition(":")
    return load_config(f"{CONFIGS}/{file}.py{colon}{arguments}", overrides)
