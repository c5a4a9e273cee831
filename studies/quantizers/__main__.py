"""Study of docs/quantizers.md: python -m studies.quantizers [--quantizers=NAMES] [--report_only]

Trains a small autoencoder on photographs with each quantizer's preset of about 8 bits per latent vector, and writes the
table of the document. Finished runs are not repeated: the same command again continues an interrupted study.
"""

import sys
from pathlib import Path

from absl import flags

from studies.common.command import chosen
from studies.common.command import define_flags as define_common_flags
from studies.common.records import Results
from studies.common.training import TrainingSetting
from studies.quantizers.report import write_document
from studies.quantizers.runs import make_runs, quantizer_runs
from studies.quantizers.variants import VARIANTS
from vqjax.training.cli import run


def define_flags() -> None:
    """Declares the flags of the command."""
    define_common_flags("quantizers")
    flags.DEFINE_integer("seeds", 3, "Trainings per quantizer.", lower_bound=1)
    flags.DEFINE_integer("steps", TrainingSetting.steps, "Steps of each training.", lower_bound=1)
    flags.DEFINE_list("quantizers", [], "Quantizers to train, by name; all by default.")


def main() -> None:
    """Runs the command."""
    values = flags.FLAGS
    quantizers = chosen(values.quantizers, list(VARIANTS), "quantizers")
    results = Results(Path(values.records) / "results.jsonl")
    if not values.report_only:
        setting = TrainingSetting(steps=values.steps)
        make_runs(results.unfinished(quantizer_runs(setting, values.seeds, quantizers)), results, setting)
    print(write_document(results, Path(values.docs)))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    run(main)
