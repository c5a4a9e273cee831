"""Evaluates a checkpoint: python eval.py --workdir=DIR [--export_tokens=FILE.npz]

The config is in the checkpoint. Prints a table and writes DIR/eval/metrics.json, report.md and reconstructions.png.
"""

import signal

if __name__ == "__main__":
    # Python's own answer, an exception, shows a stack while modules are loaded, or is lost in a callback of JAX.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import flags

from vqjax.training.cli import run
from vqjax.training.evaluate import evaluate_workdir

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Directory of the run.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
SPLIT = flags.DEFINE_enum("split", "eval", ["train", "eval"], "Evaluate the training or the held-out images.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per batch; the training batch by default.")
EXPORT_TOKENS = flags.DEFINE_string("export_tokens", None, "Write the split's code indices to this .npz file.")


def main() -> None:
    evaluate_workdir(
        WORKDIR.value,
        step=STEP.value,
        split=SPLIT.value,
        batch_size=BATCH_SIZE.value,
        export_tokens=EXPORT_TOKENS.value,
    )


if __name__ == "__main__":
    run(main)
