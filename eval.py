"""Evaluates a checkpoint (--workdir=DIR), or compares two sets of images (--real=DIR --fake=DIR), as vqjax eval."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While modules are loaded, an interrupt would show the stack of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from vqjax.training.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
