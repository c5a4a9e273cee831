"""Runs the command ``vqjax``: python -m vqjax COMMAND."""

from vqjax.training.cli import main

if __name__ == "__main__":
    main()
