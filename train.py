"""Trains a tokenizer: python train.py --config=configs/X.py --workdir=DIR [--config.field=value ...]

Without flags it trains on bundled photographs for two to three minutes. The same command again continues a run.
Several processes train one model with --distributed, see docs/long-runs.md.
"""

import signal
from pathlib import Path

if __name__ == "__main__":
    # Until a run can save: Python's own answer, an exception, shows a stack or is lost in a callback of JAX.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import flags
from ml_collections import config_flags

from vqjax.runtime.processes import join_processes
from vqjax.training.cli import run
from vqjax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, with arguments after a colon.")
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Directory of checkpoints, metrics and pictures.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes that Slurm or Open MPI has started.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Elsewhere, to join others: HOST:PORT of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Elsewhere: how many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Elsewhere: which of them this is, from 0.")


def main() -> None:
    place = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if DISTRIBUTED.value or any(value is not None for value in place):
        join_processes(*place)
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    run(main, default_config_file=Path(__file__).parent / "configs" / "quickstart.py")
