"""The progress line of a run: live on a terminal, plain lines in a file."""

import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import SupportsFloat, TextIO

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


_TERMINAL_SECONDS = 0.1
_PLAIN_SECONDS = 10.0
_USUAL_COLUMNS = 80
_USUAL_ROWS = 24


class Progress:
    """Shows step, percentage, images/s, time left, loss, PSNR, perplexity and dead codes of a run.

    On a terminal it is one live line; elsewhere a plain line at the first update, then one every 10 seconds at
    most, and one at the end. Speed and time left are averages over this process since its first update, so that
    neither the compilation nor the steps before a resume count, while pauses such as evaluations do.

    Args:
      total_steps: The step at which the run ends.
      start_step: The step at which this process takes over: 0, or that of the checkpoint it resumed from.
      images_per_step: Images of one step over all devices, for images/s.
      stream: Where to write; None is standard error.

    Example:
      >>> stream = io.StringIO()
      >>> with Progress(total_steps=4, start_step=2, images_per_step=8, stream=stream) as progress:
      ...     for step in (3, 4):
      ...         progress.metrics({"loss": 0.5 / step})
      ...         progress.update(step)
      >>> print(stream.getvalue(), end="")
      step 3/4 (75%)  ETA ?  loss 0.1667
      step 4/4 (100%)  ... images/s  took 00:00  loss 0.1250
    """

    def __init__(
        self, total_steps: int, start_step: int, images_per_step: int, stream: io.TextIOBase | TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._total_steps = total_steps
        self._step = start_step
        self._images_per_step = images_per_step
        self._metrics: dict[str, float] = {}
        self._first_update: tuple[int, float] | None = None
        self._last_update: tuple[int, float] | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        self._started = self._now = self._shown = monotonic()
        if self._live:
            self._bar = tqdm(
                total=self._total_steps,
                initial=self._step,
                file=self._stream,
                # tqdm would ask the terminal itself, and stay silent where that reports no size.
                ncols=self._columns(),
                nrows=_USUAL_ROWS,
                bar_format=terminal_line(self._moment(), self._columns()),
            )
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._now = monotonic()
        self._show()
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int) -> None:
        """Says that the run has reached a step; cheap enough to call after every dispatch.

        Args:
          step: Number of steps done, counted from the start of the run and not of this process.
        """
        self._step, self._now = step, monotonic()
        is_first = self._first_update is None
        if is_first:
            self._first_update = (step, self._now)
        self._last_update = (step, self._now)
        seconds = _TERMINAL_SECONDS if self._live else _PLAIN_SECONDS
        if is_first or self._now - self._shown >= seconds:
            self._show()

    def metrics(self, values: Mapping[str, SupportsFloat]) -> None:
        """Sets the numbers shown from the next line on.

        Args:
          values: Any of `loss`, `psnr` (dB), `perplexity` and `dead_codes`; other names are not shown. A name
            left out keeps its value.
        """
        self._metrics.update({name: float(value) for name, value in values.items()})

    def say(self, text: str) -> None:
        """Prints a line of text without breaking the live line.

        Args:
          text: What to print, without the newline.
        """
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _show(self) -> None:
        self._shown = self._now
        if self._bar is None:
            print(plain_line(self._moment()), file=self._stream, flush=True)
            return
        self._bar.n = self._step
        self._bar.ncols = self._columns()
        self._bar.bar_format = terminal_line(self._moment(), self._bar.ncols)
        self._bar.refresh()

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 0
        # Some terminals break the line as soon as the last column is written.
        return (columns or _USUAL_COLUMNS) - 1

    def _moment(self) -> Moment:
        seconds_per_step = self._seconds_per_step()
        return Moment(
            step=self._step,
            total_steps=self._total_steps,
            images_per_second=self._images_per_step / seconds_per_step if seconds_per_step else None,
            seconds_left=seconds_per_step * (self._total_steps - self._step) if seconds_per_step else None,
            seconds_taken=self._now - self._started,
            metrics=self._metrics,
        )

    def _seconds_per_step(self) -> float | None:
        if self._first_update is None or self._last_update is None:
            return None
        (first_step, first_time), (last_step, last_time) = self._first_update, self._last_update
        return (last_time - first_time) / (last_step - first_step) if last_step > first_step else None
