"""The progress line: what it says, when, and that its speed and time left are true."""

import io
import os
import re

import pytest

from vqjax.reporting import Progress, progress

METRICS = {"loss": 0.0312, "psnr": 24.123, "perplexity": 4012.3, "dead_codes": 1234.0, "relative_error": 0.1279}


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture
def columns(monkeypatch, request):
    monkeypatch.setattr(progress.os, "get_terminal_size", lambda file: os.terminal_size((request.param, 24)))
    monkeypatch.setattr(Terminal, "fileno", lambda self: 2)
    return request.param


def rows(terminal):
    return re.split(r"[\r\n]+", terminal.getvalue())


def run(
    clock,
    stream,
    *,
    start,
    stop,
    total,
    compile_seconds=60.0,
    seconds_per_step=1.0,
    images_per_step=8,
    metrics=METRICS,
    **options,
):
    with Progress(total, start, images_per_step, stream, **options) as line:
        clock.seconds += compile_seconds
        for step in range(start + 1, stop + 1):
            line.metrics(metrics)
            line.update(step)
            clock.seconds += seconds_per_step
    return stream.getvalue()


def test_speed_and_time_left_count_neither_compilation_nor_the_steps_before_a_resume(clock):
    lines = run(clock, io.StringIO(), start=900, stop=921, total=1000).splitlines()
    assert "step 901/1000 (90%)  ETA ?" in lines[0]
    assert "step 911/1000 (91%)  8.0 images/s  ETA 01:29" in lines[1]


def test_the_speed_of_clips_is_that_of_clips(clock):
    lines = run(clock, io.StringIO(), start=0, stop=25, total=25, clips=True).splitlines()
    assert "  8.0 clips/s  " in lines[1]


def test_plain_lines_come_first_then_every_ten_seconds_then_at_the_end(clock):
    lines = run(clock, io.StringIO(), start=0, stop=25, total=25).splitlines()
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines] == [1, 11, 21, 25]
    assert lines[-1] == (
        "step 25/25 (100%)  8.0 images/s  took 01:25  loss 0.0312  PSNR 24.12  perplexity 4012  dead codes 1234  "
        "relative error 0.13"
    )


def test_an_interrupted_run_says_how_far_it_came():
    def interrupted(stream):
        with Progress(10, 0, 1, stream) as line:
            line.update(1)
            raise KeyboardInterrupt

    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        interrupted(stream)
    assert stream.getvalue().splitlines()[-1].startswith("step 1/10 (10%)")


def test_text_does_not_break_the_live_line(clock):
    stream = Terminal()
    with Progress(10, 0, 1, stream) as line:
        line.update(1)
        line.say("a checkpoint was written")
    assert "a checkpoint was written" in [row.strip() for row in rows(stream)]
    assert all(len(row) < 80 for row in rows(stream))


def test_a_terminal_gets_a_bar_that_starts_at_the_resumed_step(clock):
    written = run(clock, Terminal(), start=50, stop=60, total=100)
    assert "50%|" in written
    assert "compiling" in written
    assert "60/100" in written


@pytest.mark.parametrize("columns", [20, 80, 100, 160], indirect=True)
def test_the_line_fits_the_terminal(clock, columns):
    terminal = Terminal()
    run(clock, terminal, start=123454, stop=123456, total=200000, images_per_step=123456)
    assert max(map(len, rows(terminal))) < columns
    assert any("123456/200000"[: columns - 1] in row for row in rows(terminal))


@pytest.mark.parametrize("columns", [80, 100], indirect=True)
def test_narrow_terminals_show_whole_facts(clock, columns):
    terminal = Terminal()
    with Progress(20000, 12344, 6425, terminal) as line:
        line.metrics(METRICS)
        line.update(12344)
        clock.seconds += 4000 / 7655
        line.update(12345)
    facts = "12345/20000 12.3k img/s ETA 1:06:40 loss 0.0312 PSNR 24.12 ppl 4012 dead 1234"
    assert facts + " rel 0.13" * (columns == 100) in rows(terminal)


def test_nothing_left_to_do_is_no_error():
    stream = io.StringIO()
    with Progress(10, 10, 1, stream):
        pass
    assert stream.getvalue().startswith("step 10/10 (100%)")


def test_numbers_that_are_not_finite_are_shown(clock):
    last = run(
        clock, io.StringIO(), start=0, stop=2, total=2, metrics=dict.fromkeys(METRICS, float("nan"))
    ).splitlines()
    assert "loss nan  PSNR nan  perplexity nan" in last[-1]


def test_a_classifier_shows_its_accuracy(clock):
    text = run(clock, io.StringIO(), start=0, stop=1, total=1, metrics={"loss": 1.0, "accuracy": 0.8512})
    assert "loss 1.0000  accuracy 85.1 %" in text
