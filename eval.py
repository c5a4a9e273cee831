"""Evaluates a checkpoint: python eval.py --workdir=DIR [--export_tokens=FILE.npz], or vqjax eval."""

import signal
import sys

if __name__ == "__main__":
    # While modules are loaded, an interrupt would show the stack of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from vqjax.training.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
