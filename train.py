"""Trains a model: python train.py --config=configs/X.py --workdir=DIR [--config.field=value ...], or vqjax train."""

import signal
import sys

if __name__ == "__main__":
    # While modules are loaded, an interrupt would show the stack of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from vqjax.training.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
