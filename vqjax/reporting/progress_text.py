"""What the progress of a run says, in as many columns as there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

_SHORTEST_BAR = 10
_NAMES = {"loss": "loss", "psnr": "PSNR", "perplexity": "perplexity", "dead_codes": "dead codes"}
# For terminals of 80 columns; `ppl` is how language models print it.
_SHORT_NAMES = {"loss": "loss", "psnr": "PSNR", "perplexity": "ppl", "dead_codes": "dead"}


@dataclass(frozen=True)
class Moment:
    """How far a run has come; `images_per_second` is None until the speed is known."""

    step: int
    total_steps: int
    images_per_second: float | None
    seconds_left: float | None
    seconds_taken: float
    metrics: Mapping[str, float]


def plain_line(moment: Moment) -> str:
    """Writes one line for a log file.

    Args:
      moment: How far the run has come.

    Returns:
      The step, the percentage, images/s, the time left (or taken, at the end) and the latest metrics.

    Example:
      >>> plain_line(Moment(50, 200, 1234.5, 90.0, 30.0, {"loss": 0.0312, "dead_codes": 3.0}))
      'step 50/200 (25%)  1234 images/s  ETA 01:30  loss 0.0312  dead codes 3'
    """
    head = f"step {moment.step}/{moment.total_steps} ({_percent(moment)}%)"
    return "  ".join([head, *_speed(moment, "images/s"), *_metrics(moment, _NAMES)])


def terminal_line(moment: Moment, columns: int) -> str:
    """Chooses the most telling line that fits a terminal.

    Args:
      moment: How far the run has come.
      columns: Columns of the terminal.

    Returns:
      A `bar_format` of tqdm: with a bar where there is room for one, else in full words, else in short ones.

    Example:
      >>> terminal_line(Moment(50, 200, 1234.5, 90.0, 30.0, {"dead_codes": 3.0}), 80)
      ' 25%|{bar}| 50/200  1234 images/s  ETA 01:30  dead codes 3'
      >>> terminal_line(Moment(50, 200, 1234.5, 90.0, 30.0, {"dead_codes": 3.0}), 50)
      '50/200 25%  1234 images/s  ETA 01:30  dead codes 3'
    """
    steps = f"{moment.step}/{moment.total_steps}"
    words = [*_speed(moment, "images/s"), *_metrics(moment, _NAMES)]
    short_words = [*_speed(moment, "img/s", tqdm.format_sizeof), *_metrics(moment, _SHORT_NAMES)]
    with_bar = "  ".join([f"{_percent(moment):3d}%|{{bar}}| {steps}", *words])
    if len(with_bar) - len("{bar}") + _SHORTEST_BAR <= columns:
        return with_bar
    head = f"{steps} {_percent(moment)}%"
    lines = ["  ".join([head, *words]), "  ".join([head, *short_words]), " ".join([head, *short_words])]
    # Very narrow: whole facts go, the last ones first.
    lines += [" ".join([steps, *short_words[:kept]]) for kept in range(len(short_words), 0, -1)]
    return next((line for line in lines if len(line) <= columns), steps)


def _percent(moment: Moment) -> int:
    return 100 * moment.step // max(moment.total_steps, 1)


def _speed(moment: Moment, unit: str, large_number: Callable[[float], str] = "{:.0f}".format) -> list[str]:
    words = []
    if moment.images_per_second is not None:
        speed = moment.images_per_second
        words.append(f"{speed:.1f} {unit}" if speed < 10 else f"{large_number(speed)} {unit}")
    if moment.step >= moment.total_steps:
        words.append(f"took {tqdm.format_interval(moment.seconds_taken)}")
    elif moment.seconds_left is not None:
        words.append(f"ETA {tqdm.format_interval(moment.seconds_left)}")
    else:
        words.append("compiling" if moment.seconds_taken == 0 else "ETA ?")
    return words


def _metrics(moment: Moment, names: Mapping[str, str]) -> list[str]:
    return [f"{name} {_number(key, moment.metrics[key])}" for key, name in names.items() if key in moment.metrics]


def _number(key: str, value: float) -> str:
    if key == "loss":
        return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.2e}"
    return f"{value:.2f}" if key == "psnr" else f"{value:.0f}"
