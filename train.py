"""Trains a tokenizer: python train.py --config=configs/X.py --workdir=DIR [--config.field=value ...]

Without flags it trains on bundled photographs for two to three minutes. The same command again continues a run.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vqjax.training.command_line import run
from vqjax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, with arguments after a colon.")
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Directory of checkpoints, metrics and pictures.")


def main() -> None:
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    run(main, default_config_file=Path(__file__).parent / "configs" / "quickstart.py")
