"""Trains a model: python train.py --config=configs/X.py --workdir=DIR [--config.field=value ...], or vqjax train."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While modules are loaded, an interrupt would show the stack of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from vqjax.training.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
