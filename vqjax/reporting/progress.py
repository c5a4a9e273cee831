"""Progress line of a run: live on a terminal, plain lines in a file."""

import io
import os
import sys
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import SupportsFloat, TextIO

from tqdm import tqdm

_TERMINAL_SECONDS = 0.1
_PLAIN_SECONDS = 10.0
_USUAL_COLUMNS = 80
_USUAL_ROWS = 24
_SHORTEST_BAR = 10
_WORDS = {
    "loss": "loss",
    "psnr": "PSNR",
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "dead_codes": "dead codes",
    "relative_error": "relative error",
}
# For terminals of 80 columns; ``ppl`` is the abbreviation of language models.
_SHORT_WORDS = _WORDS | {
    "accuracy": "acc",
    "perplexity": "ppl",
    "dead_codes": "dead",
    "relative_error": "rel",
}


class Progress:
    """Progress of a run: step, percentage, images/s, time left, loss, and what tells quality and use of codes.

    On a terminal it is one live line; elsewhere a plain line at the first update, then one every 10 seconds at
    most, and one at the end. Speed and time left are averages over this process since its first update, so that
    neither the compilation nor the steps before a resume count, while pauses such as evaluations do.

    Args:
      total_steps: Step at which the run ends.
      start_step: Step at which this process takes over: 0, or that of the checkpoint it resumed from.
      examples_per_step: Images, or clips, of one step over all devices, for the speed.
      stream: Where to write; None is standard error.
      clips: Whether they are clips.

    Example:
      >>> stream = io.StringIO()
      >>> with Progress(total_steps=4, start_step=2, examples_per_step=8, stream=stream) as progress:
      ...     for step in (3, 4):
      ...         progress.metrics({"loss": 0.5 / step})
      ...         progress.update(step)
      >>> print(stream.getvalue(), end="")
      step 3/4 (75%)  ETA ?  loss 0.1667
      step 4/4 (100%)  ... images/s  took 00:00  loss 0.1250
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        examples_per_step: int,
        stream: io.TextIOBase | TextIO | None = None,
        *,
        clips: bool = False,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total_steps = total_steps
        self._step = start_step
        self._examples_per_step = examples_per_step
        self._clips = clips
        self._metrics: dict[str, float] = {}
        self._first_update: tuple[int, float] | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        self._started = self._now = self._shown = monotonic()
        if self._stream.isatty():
            columns = self._columns()
            self._bar = tqdm(
                total=self._total_steps,
                initial=self._step,
                file=self._stream,
                bar_format=self._live_line(columns),
                # tqdm would ask the terminal itself, and stay silent if that reports no size.
                ncols=columns,
                nrows=_USUAL_ROWS,
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
        """Note that the run has reached a step; cheap enough to call after every dispatch.

        Args:
          step: Steps done since the start of the run, not of this process.
        """
        self._step = step
        self._now = self._updated = monotonic()
        is_first = self._first_update is None
        if is_first:
            self._first_update = (step, self._now)
        seconds = _PLAIN_SECONDS if self._bar is None else _TERMINAL_SECONDS
        if is_first or self._now - self._shown >= seconds:
            self._show()

    def metrics(self, values: Mapping[str, SupportsFloat]) -> None:
        """Set the numbers shown from the next line on.

        Args:
          values: Any of ``loss``, ``psnr`` (dB), ``accuracy`` (a share), ``perplexity``, ``dead_codes`` and
            ``relative_error``; other names are not shown. A name left out keeps its value.
        """
        self._metrics.update({name: float(value) for name, value in values.items()})

    def say(self, text: str) -> None:
        """Print a line of text without breaking the live line.

        Args:
          text: The text, without the newline.
        """
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _show(self) -> None:
        self._shown = self._now
        if self._bar is None:
            head = f"step {self._step}/{self._total_steps} ({self._percent()}%)"
            print("  ".join([head, *self._facts(_WORDS)]), file=self._stream, flush=True)
            return
        self._bar.n, self._bar.ncols = self._step, self._columns()
        self._bar.bar_format = self._live_line(self._bar.ncols)
        self._bar.refresh()

    def _live_line(self, columns: int) -> str:
        """Format for tqdm: with a bar if all words fit next to it, otherwise in short words."""
        steps = f"{self._step}/{self._total_steps}"
        line = "  ".join([f"{self._percent():3d}%|{{bar}}| {steps}", *self._facts(_WORDS)])
        if len(line) - len("{bar}") + _SHORTEST_BAR <= columns:
            return line
        facts = [steps, *self._facts(_SHORT_WORDS)]
        while len(" ".join(facts)) > columns and len(facts) > 1:
            # Whole facts, as half a number is another one.
            facts.pop()
        return " ".join(facts)[:columns]

    def _facts(self, words: Mapping[str, str]) -> list[str]:
        """Speed, time and metrics, each in its own words."""
        facts, seconds = [], self._seconds_per_step()
        if seconds:
            short = words is _SHORT_WORDS
            unit = "clips/s" if self._clips else "img/s" if short else "images/s"
            facts.append(f"{_speed(self._examples_per_step / seconds, short)} {unit}")
        if self._step >= self._total_steps:
            facts.append(f"took {tqdm.format_interval(self._now - self._started)}")
        elif seconds:
            facts.append(f"ETA {tqdm.format_interval(seconds * (self._total_steps - self._step))}")
        else:
            facts.append("compiling" if self._first_update is None else "ETA ?")
        shown = (name for name in words if name in self._metrics)
        return facts + [f"{words[name]} {_number(name, self._metrics[name])}" for name in shown]

    def _seconds_per_step(self) -> float | None:
        if self._first_update is None or self._step == self._first_update[0]:
            return None
        step, time = self._first_update
        return (self._updated - time) / (self._step - step)

    def _percent(self) -> int:
        return 100 * self._step // max(self._total_steps, 1)

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 0
        # Some terminals break the line as soon as the last column is written.
        return (columns or _USUAL_COLUMNS) - 1


def _speed(value: float, short: bool) -> str:
    if value < 10:
        return f"{value:.1f}"
    return tqdm.format_sizeof(value) if short else f"{value:.0f}"


def _number(name: str, value: float) -> str:
    if name == "loss":
        return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.2e}"
    if name == "accuracy":
        return f"{100 * value:.1f} %"
    return f"{value:.2g}" if name == "relative_error" else f"{value:.2f}" if name == "psnr" else f"{value:.0f}"


def progress_of(total: int, verb: str = "evaluated") -> Callable[[int], None]:
    """Return what prints the number of images done and the time left, every few seconds.

    Args:
      total: Number of images.
      verb: What was done to them.
    """
    started, shown, first = monotonic(), None, None

    def show(done: int) -> None:
        nonlocal shown, first
        now = monotonic()
        # The first batch says that it runs, and waits for the compiler.
        first = first or (now, done)
        if shown is None or now - shown >= _PLAIN_SECONDS:
            if shown is not None or now - started > 1:
                speed = (done - first[1]) / (now - first[0]) if now > first[0] else 0
                left = f"{(total - done) / speed:.0f} s" if speed else "?"
                print(f"{verb} {done}/{total} images  ETA {left}", file=sys.stderr, flush=True)
            shown = now

    return show
