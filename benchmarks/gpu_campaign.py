"""The measurements that wait for a GPU, the most valuable first: python -m benchmarks.gpu_campaign [--minutes=N]

Each part runs in a process of its own under a time limit, decides its question, and writes
``benchmarks/results/gpu_campaign-PART.json``. Parts that are decided are skipped, so the command can be stopped and
started again; delete the file of a part to repeat it. ``--toy`` rehearses everything in small sizes on any device.

Wheels: ``pip install -e ".[train,plots]" "jax[cuda13]"``; for the peers also ``".[parity]"`` (PyTorch for the same
CUDA). Parts that need what is not installed, or CIFAR-10 as tensorflow-datasets prepares it (``TFDS_DATA_DIR``), say so
and are left for later. Nothing is downloaded.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from PIL import Image

from benchmarks import (
    backends,
    data,
    epoch,
    quantizer,
    sampling,
    scaling,
    search,
    startup,
    statistics,
    tokenizers,
    train_step,
)
from benchmarks.measure import RESULTS, machine
from benchmarks.peers.available import installed
from benchmarks.trainer import ROOT, fields, start, train
from vqjax.runtime.files import atomic_file, strict_json
from vqjax.runtime.paths import local_path

Rows = list[dict[str, Any]]
_PUBLISHED_ERROR = 0.056
_TINY = fields({"model.width": 8, "num_steps": 8, "batch_size": 8, "log_every": 2, "tensorboard": False})
_TOY_CONFIG = "configs/quickstart.py"
_LARGE = "65536x16384x256"
_FED = {"images": 1024, "image_size": 256, "batch_size": 32, "seconds": 15.0}
_FED_PER_SECOND = 1_500
_IDLE_MEBIBYTES = 2048
_JOBS = 14
"""Trainings at once, which fill an H100; twenty ran out of its memory."""


class Verdict(NamedTuple):
    """Results of a part.

    Attributes:
      passed: Whether it reached what is expected of a GPU; None where there is nothing to reach, or nothing to compare.
      text: The finding, and what to do about it.
      undecided: Whether something that the question is about did not run.
    """

    passed: bool | None
    text: str
    undecided: bool = False


class Part(NamedTuple):
    """A question that only a GPU can answer.

    Attributes:
      question: What is asked.
      minutes: The limit; a part that is stopped is tried again by the next command.
      measure: Takes the measurements, in toy size where it is given True.
      decide: Reads them, also those of an earlier version.
      needs: ``"cifar10"``, ``"imagenette"``, and the names of Python packages.
    """

    question: str
    minutes: float
    measure: Callable[[bool], Rows]
    decide: Callable[[Rows], Verdict]
    needs: Sequence[str] = ()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the parts and their findings; run nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    parser.add_argument("--toy", action="store_true", help="small sizes, on any device; results go to runs/")
    parser.add_argument("--minutes", type=float, help="start no part whose limit is longer than what is left of these")
    parser.add_argument("--results", type=local_path, help="directory of the results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = options.results or (ROOT / "runs" / "gpu_campaign_toy" if options.toy else RESULTS)
    if options.part:
        _measure(options.part, results, options.toy)
        return
    if not options.list:
        if not options.toy and _backend() != "gpu":
            sys.exit("error: JAX finds no GPU here; rehearse with --toy, or install jax[cuda13]")
        _run(options.only, results, options.toy, options.minutes)
    _print_findings(options.only, results)


def _path(name: str, results: Path) -> Path:
    return results / f"gpu_campaign-{name}.json"


def _backend() -> str:
    # In another process: this one would keep most of the GPU's memory.
    code = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _run(names: Sequence[str], results: Path, toy: bool, minutes: float | None) -> None:
    """Run the parts that are not finished, each in a process of its own."""
    end = time.monotonic() + 60 * (float("inf") if minutes is None else minutes)
    # A stopped campaign leaves no part running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in names:
        part = PARTS[name]
        missing = [need for need in part.needs if not _available(need) and not toy]
        verdict = _verdict(name, results)
        if verdict is not None and (toy or not verdict.undecided):
            print(f"{name}: finished before", flush=True)
        elif missing:
            print(f"{name}: left for later, needs {', '.join(missing)}", flush=True)
        elif time.monotonic() + 60 * part.minutes > end:
            print(f"{name}: left for later, its limit is {part.minutes:g} minutes", flush=True)
        else:
            print(f"{name}: {part.question} (at most {part.minutes:g} minutes)", flush=True)
            command = [sys.executable, "-m", "benchmarks.gpu_campaign", f"--part={name}", f"--results={results}"]
            with _process_group([*command, *(["--toy"] if toy else [])]) as process:
                try:
                    if status := process.wait(60 * part.minutes):
                        print(f"{name}: failed with status {status}; the next command tries it again", flush=True)
                except subprocess.TimeoutExpired:
                    print(f"{name}: stopped at its limit; the next command tries it again", flush=True)


def _verdict(name: str, results: Path) -> Verdict | None:
    """Return the verdict on a part, undecided if a case failed; None if the part has not been measured."""
    path = _path(name, results)
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["rows"]
    verdict = PARTS[name].decide(rows)
    return verdict._replace(undecided=verdict.undecided or any("error" in row for row in rows))


def _available(need: str) -> bool:
    if need == "imagenette":
        return (ROOT / "data" / "imagenette").is_dir()
    if need == "cifar10":
        return (Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / "cifar10").is_dir()
    return installed(need)


@contextlib.contextmanager
def _process_group(command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """Start a command that ends together with all that it has started."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        stopped = process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if stopped:
            _wait_for_the_gpu()


def _wait_for_the_gpu(seconds: float = 60.0) -> None:
    """The memory of a killed process was seen in use for a minute: the next one would find none."""
    if shutil.which("nvidia-smi") is None:
        return
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        used = subprocess.run(query, check=False, capture_output=True, text=True).stdout.split()
        if all(int(mebibytes) < _IDLE_MEBIBYTES for mebibytes in used if mebibytes.isdigit()):
            return
        time.sleep(1.0)


def _measure(name: str, results: Path, toy: bool) -> None:
    """Run one part and write its results."""
    part, began = PARTS[name], time.perf_counter()
    rows = part.measure(toy)
    record = {"part": name, "question": part.question, "machine": machine(), "seconds": time.perf_counter() - began}
    results.mkdir(parents=True, exist_ok=True)
    with atomic_file(_path(name, results)) as file:
        file.write(strict_json(record | {"rows": rows}, indent=1).encode() + b"\n")


def _print_findings(names: Sequence[str], results: Path) -> None:
    marks = {True: "reached", False: "MISSED", None: "measured"}
    for name in names:
        verdict = _verdict(name, results) or Verdict(None, PARTS[name].question, undecided=True)
        mark = "open" if verdict.undecided else marks[verdict.passed]
        print(f"{name:<{max(map(len, PARTS))}}  {mark:<8}  {verdict.text}")


# What several parts need


def _share_with_pytorch() -> None:
    """Let JAX allocate GPU memory as it needs it; by default it takes three quarters of it before PyTorch starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _at_once(measure: Callable[..., Rows], cases: Sequence[Any]) -> Rows:
    """All cases; one that fails is a row that says so, not the end of the part."""
    rows = []
    for case in cases:
        print(f"  measuring {case}", flush=True)
        began = time.perf_counter()
        try:
            measured = measure(case)
            # So that a part that is stopped has said what it knew.
            print(*map(strict_json, measured), sep="\n", flush=True)
            rows += measured
        except Exception as error:
            rows.append({"case": str(case), "error": f"{type(error).__name__}: {error}"[:500]})
            print(f"  failed: {rows[-1]['error']}", flush=True)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def _fastest(rows: Rows, case: Callable[[Mapping[str, Any]], object]) -> tuple[str, float]:
    """The contender with the lowest mean time of those that ran in every case, and its time over the second's."""
    cases = {case(row) for row in rows}
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["contender"], []).append(row["ms"])
    means = sorted((geometric_mean(ms), name) for name, ms in times.items() if len(ms) == len(cases))
    (best, name), (second, _) = means[0], means[min(1, len(means) - 1)]
    return name, second / best


def _failures(rows: Rows) -> str:
    failed = [f"{row['case']} failed: {row['error']}" for row in rows if "error" in row]
    return "".join(f"; {text}" for text in failed)


# The parts


def _searches(toy: bool) -> Rows:
    return _at_once(search.measure, ["256x64x8"] if toy else [_LARGE, "65536x1024x64"])


def _decide_search(rows: Rows) -> Verdict:
    """The fastest search without a wrong code; the plain product and the textbook form do not compete."""
    searches = [row for row in rows if row.get("wrong codes")]
    if not searches:
        return Verdict(None, f"no search ran{_failures(rows)}", undecided=True)
    wrong = {row["contender"] for row in searches if not row["wrong codes"].startswith("0 ")}
    exact = [row for row in searches if row["contender"] not in wrong]
    if "vqjax" in wrong or not exact:
        return Verdict(False, f"the search of the package has wrong codes{_failures(rows)}")
    name, ahead = _fastest(exact, lambda row: row["case"])
    passed = name == "vqjax" or ahead < 1.1
    advice = "keep the search" if passed else f"make {name!r} the search in vqjax/functional/search.py"
    text = f"fastest with 0 wrong codes: {name}, {ahead:.2f}x ahead; {advice}"
    return Verdict(passed, text + _failures(rows))


def _quantizers(toy: bool) -> Rows:
    _share_with_pytorch()
    return _at_once(quantizer.measure, ["256x64x8"] if toy else [_LARGE, "65536x1024x64"])


def _decide_quantizer(rows: Rows) -> Verdict:
    """The first case decides; the others are said."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {row["case"]: {} for row in rows}
    for row in rows:
        cases[row["case"]][row.get("contender", "error")] = row
    texts, verdicts = [], []
    for name, case in cases.items():
        peer, ours = case.get("vector-quantize-pytorch, torch.compile"), case.get("vqjax", {})
        ratio, products = peer and peer["ours is faster by"], ours.get("times one product")
        text = f"{ratio:.1f}x the compiled peer (5x expected)" if ratio else "the compiled peer did not run"
        texts.append(f"{name}: {text}" + (f", {products:.2f} times one product (1.5 allowed)" if products else ""))
        verdicts.append(ratio >= 5 and products <= 1.5 if ratio and products else None)
    return Verdict(verdicts[0], "; ".join(texts) + _failures(rows), undecided=verdicts[0] is None)


def _backends(toy: bool) -> Rows:
    return backends.measure_all(["vq", "fsq", "sonnet"] if toy else list(backends.CASES))


def _decide_backends(rows: Rows) -> Verdict:
    """Rounding may send a token between two codes to either, and everything behind it with it."""
    measured = [row for row in rows if "error" not in row]
    same = [row for row in measured if not row["indices differ"]]
    largest = max((row["largest difference"] for row in same), default=0.0)
    others = ", ".join(f"{row['name']}: {row['indices differ']} of {row['of']}" for row in measured if row not in same)
    text = f"{len(same)} of {len(rows)} with the same indices; their largest difference {largest:.1e}"
    text += f"; other indices in {others}" if others else ""
    failed = "".join(f"; {row['name']} failed: {row['error']}" for row in rows if "error" in row)
    differ = max((row["indices differ"] / row["of"] for row in measured if row["of"]), default=0.0)
    close = all(row["largest difference"] < 1e-3 for row in same)  # NaN is not
    return Verdict(not failed and close and differ < 1e-2, text + failed)


def _tokenizer(name: str, toy: bool) -> Rows:
    _share_with_pytorch()
    return _at_once(lambda case: tokenizers.measure(case, toy), [name])


def _decide_tokenizers(rows: Rows) -> Verdict:
    ours = [f"{row['case']}: {row['images/s']:.0f} images/s" for row in rows if row.get("contender") == "vqjax"]
    peers = [row for row in rows if "torch.compile" in row.get("contender", "")]
    text = "; ".join(
        [*ours, *(f"{row['case']}: {row['ours is faster by']:.2f}x of {row['contender']}" for row in peers)]
    )
    slowest = min((row["ours is faster by"] for row in peers), default=0)
    passed = slowest >= 1.5 if peers else None
    return Verdict(passed, f"{text} (1.5x expected){_failures(rows)}", undecided=not peers)


def _counting(toy: bool) -> Rows:
    cases = ["256x64x8"] if toy else statistics.CASES
    return _at_once(lambda case: statistics.measure(case, "even") + statistics.measure(case, "skewed"), cases)


def _decide_counting(rows: Rows) -> Verdict:
    name, ahead = _fastest([row for row in rows if "ms" in row], lambda row: (row["case"], row["tokens per code"]))
    advice = "keep it" if name == "scatter" else "make it `assign` in vqjax/functional/codebook.py on this backend"
    return Verdict(None, f"fastest: {name}, {ahead:.2f}x ahead; {advice}{_failures(rows)}")


def _fifty_epochs(toy: bool) -> Rows:
    config = _TOY_CONFIG if toy else "configs/cifar10.py"
    with tempfile.TemporaryDirectory() as directory:
        taken = train(
            Path(directory, "run"),
            *(f"--config={config}", "--config.model.dtype=bfloat16"),
            *(_TINY if toy else []),
            echo=True,
        )
        metrics = _evaluation(Path(directory, "run"))
    return [taken._asdict() | metrics]


def _decide_fifty_epochs(rows: Rows) -> Verdict:
    seconds = rows[0]["seconds"]
    return Verdict(seconds < 60, f"{seconds:.0f} s from the command to its end (60, then 20 expected)")


def _evaluation(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "eval" / "metrics.json").read_text())["metrics"]


def _interrupted(toy: bool) -> Rows:
    """As XLA adds by default, in any order, and in a fixed order."""
    return [_killed_and_continued(toy, flags) for flags in ("", "--xla_gpu_deterministic_ops=true")]


def _killed_and_continued(toy: bool, flags: str) -> dict[str, Any]:
    """One run that is left alone, and one that is killed after its first checkpoint and started again."""
    environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    steps = [] if toy else fields({"num_steps": 2000})
    arguments = [f"--config={_TOY_CONFIG}", *(_TINY if toy else []), *steps]
    arguments += fields({"checkpoint_every": 2 if toy else 200})
    with tempfile.TemporaryDirectory() as directory:
        whole, killed = Path(directory, "whole"), Path(directory, "killed")
        taken = train(whole, *arguments, **environment)
        with start(killed, *arguments, **environment) as process:
            # Its log needs a reader, or the run would wait for one; the first line of progress follows a saved step.
            for _ in process.stderr:
                if any(killed.glob("checkpoints/*/SHA256SUMS")):
                    break
            process.kill()
        train(killed, *arguments, **environment)
        logs = [(workdir / "metrics.jsonl").read_bytes() for workdir in (whole, killed)]
        return {
            "flags": flags,
            "seconds": taken.seconds,
            "status of the killed run": process.returncode,
            "same log": logs[0] == logs[1],
            "same evaluation": _evaluation(whole) == _evaluation(killed),
        }


def _decide_interrupted(rows: Rows) -> Verdict:
    """The last row is of the fixed order."""
    texts = []
    for row in rows:
        end = "ends bit for bit the same" if row["same log"] and row["same evaluation"] else "differs"
        end += "" if row["status of the killed run"] == -signal.SIGKILL else ", but it ended before it could be killed"
        texts.append(f"a continued run {end} ({row['flags'] or 'as XLA is'}, {row['seconds']:.0f} s)")
    same = rows[-1]["same log"] and rows[-1]["same evaluation"]
    killed = rows[-1]["status of the killed run"] == -signal.SIGKILL
    return Verdict(same if killed else None, "; ".join(texts), undecided=not killed)


def _sonnet(toy: bool) -> Rows:
    rows = []
    for estimator in ("straight_through", "rotation"):
        config = f"configs/cifar10.py:sonnet,estimator={estimator}"
        arguments = [f"--config={_TOY_CONFIG}", *_TINY] if toy else [f"--config={config}"]
        with tempfile.TemporaryDirectory() as directory:
            taken = train(Path(directory, "run"), *arguments)
            rows.append({"estimator": estimator} | taken._asdict() | _evaluation(Path(directory, "run")))
    return rows


def _decide_sonnet(rows: Rows) -> Verdict:
    error, perplexity = (rows[0][name] for name in ("mse_over_variance", "perplexity_batch"))
    text = f"straight-through: MSE / variance {error:.4f} (0.0564 on a CPU), perplexity {perplexity:.0f} (331)"
    text += f"; rotation {rows[1]['mse_over_variance']:.4f} (0.1104); {rows[0]['seconds']:.0f} s a run"
    return Verdict(abs(error / _PUBLISHED_ERROR - 1) < 0.05, text)


def _train_step(name: str, toy: bool) -> Rows:
    _share_with_pytorch()
    return _at_once(lambda case: train_step.measure(case, batch_size=2 if toy else None), [name])


def _decide_train_step(rows: Rows) -> Verdict:
    ratios = [
        f"{row['model']}: {row['ours is faster by']:.2f}x of {row['contender']}"
        for row in rows
        if "torch.compile" in row.get("contender", "")
    ]
    slowest = min((row["ours is faster by"] for row in rows if "torch.compile" in row.get("contender", "")), default=0)
    text = "; ".join(ratios) or "the PyTorch loop did not run"
    return Verdict(slowest >= 1 if ratios else None, text + _failures(rows), undecided=not ratios)


_TOO_SHORT = Verdict(None, "a run showed fewer than two lines of progress", undecided=True)


def _steps(config: str, steps: int, batch_size: int, toy: bool, changes: Mapping[str, object]) -> dict[str, Any]:
    """Time a run whose only evaluation and checkpoint are those at its end."""
    rare = {} if toy else {"eval_every": steps, "checkpoint_every": steps}
    return epoch.measure(config, steps, batch_size, *(_TINY if toy else []), *fields(rare | changes))


def _dispatches(toy: bool) -> Rows:
    config, steps, batch_size = (_TOY_CONFIG, 8, 8) if toy else ("configs/cifar10.py:sonnet", 4000, 32)
    return [
        {"steps_per_dispatch": count} | _steps(config, steps, batch_size, toy, {"steps_per_dispatch": count})
        for count in ([1, 2] if toy else [1, 5, 20, 100])
    ]


def _decide_dispatches(rows: Rows) -> Verdict:
    speed = {row["steps_per_dispatch"]: row["images/s of the steps"] for row in rows}
    if None in speed.values():
        return _TOO_SHORT
    best = max(speed, key=speed.get)
    table = ", ".join(f"{count}: {images:.0f}" for count, images in speed.items())
    return Verdict(None, f"steps per dispatch: images/s; {table}; best: {best} (20 by default)")


def _accumulated(toy: bool) -> Rows:
    config, steps, batch_size = (_TOY_CONFIG, 8, 8) if toy else ("configs/cifar10.py", 800, 128)
    return [
        {"parts": count} | _steps(config, steps, batch_size, toy, {"gradient_accumulation": count} if count > 1 else {})
        for count in ([1, 2] if toy else [1, 2, 4, 8])
    ]


def _decide_accumulated(rows: Rows) -> Verdict:
    speed = {row["parts"]: row["images/s of the steps"] for row in rows}
    if None in speed.values():
        return _TOO_SHORT
    return Verdict(None, "parts of a batch: images/s; " + ", ".join(f"{n}: {x:.0f}" for n, x in speed.items()))


def _startups(toy: bool) -> Rows:
    configs = [_TOY_CONFIG] if toy else ["configs/quickstart.py", "configs/cifar10.py"]
    extra = fields({"model.width": 8}) if toy else []
    return [{"config": config, **row} for config in configs for row in startup.measure(config, *extra)]


def _decide_startups(rows: Rows) -> Verdict:
    seconds = {(row["config"], row["start"]): row["seconds to the first step"] for row in rows}
    text = ", ".join(f"{config} {start}: {value:.1f} s" for (config, start), value in seconds.items())
    return Verdict(all(value < 10 for (_, start), value in seconds.items() if start != "cold"), text)


def _growth(toy: bool) -> Rows:
    if toy:
        return [scaling.measure("tokens", {"tokens": 64, "codes": 16, "dim": 4})]
    return scaling.measure_all()


def _decide_growth(rows: Rows) -> Verdict:
    largest = rows[-1] if len(rows) == 1 else next(row for row in rows if row["varied"] == "largest codebook")
    size = f"{largest['tokens']} tokens, {largest['codes']} codes of {largest['dim']}"
    return Verdict(None, f"{size}: {largest['ms']:.3g} ms, {largest['temporary MiB']:.0f} MiB temporary")


def _study(name: str, flags: Sequence[str], toy: bool) -> Rows:
    docs = ROOT / "docs"
    if toy:
        docs, flags = ROOT / "runs" / "gpu_campaign_toy" / "docs", ["--report_only"]
        docs.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", f"studies.{name}", f"--docs={docs}", *flags],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        # Several trainings at once share the memory.
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    return [{"output": str(docs.relative_to(ROOT))}]


def _sampled(toy: bool) -> Rows:
    _share_with_pytorch()
    sizes = {"batch": 8, "dim": 64, "depth": 1, "seconds": 1.0} if toy else {"batch": 256, "dim": 768, "depth": 12}
    return sampling.measure(**sizes)


def _decide_sampled(rows: Rows) -> Verdict:
    ours, peers = rows[0], [row["ours is faster by"] for row in rows[1:]]
    text = f"{ours['tokens/s']:.0f} tokens/s with {ours['programs']} program"
    if not peers:
        return Verdict(None, text, undecided=True)
    return Verdict(min(peers) >= 1 and ours["programs"] == 1, f"{text}, {min(peers):.2f} times as many as PyTorch")


def _fed(toy: bool) -> Rows:
    size = {"images": 4, "image_size": 32, "batch_size": 2, "seconds": 1.0} if toy else _FED
    cores = len(os.sched_getaffinity(0))
    if not toy:
        return data.measure(ROOT / "data" / "imagenette", cores=[1, cores // 2, cores], **size)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory, "train", "gray")
        folder.mkdir(parents=True)
        for number in range(size["images"]):
            Image.new("RGB", (40, 40), (number,) * 3).save(folder / f"{number}.jpg")
        return data.measure(Path(directory), cores=[1], **size)


def _decide_fed(rows: Rows) -> Verdict:
    ours = {row["cores"]: row["images/s"] for row in rows if row["contender"] == "vqjax"}
    text = ", ".join(f"{rate:.0f} images/s on {cores} cores" for cores, rate in ours.items())
    return Verdict(max(ours.values()) >= _FED_PER_SECOND, f"{text} ({_FED_PER_SECOND:,} expected)")


def _decide_study(rows: Rows) -> Verdict:
    return Verdict(None, f"written below {rows[0]['output']}")


PARTS: dict[str, Part] = {
    "search": Part("Which search is exact and fastest?", 5, _searches, _decide_search),
    "quantizer": Part(
        "Is a quantizer's step 5 times as fast as the compiled peer's?",
        4,
        _quantizers,
        _decide_quantizer,
        ("vector_quantize_pytorch",),
    ),
    "backends": Part("Do quantizers and tasks give what a CPU gives?", 4, _backends, _decide_backends),
    "rotation": Part(
        "What do remedies against unused codes change for each estimator? Finished trainings are kept.",
        12,
        functools.partial(
            _study,
            "rotation",
            [
                "--stages=remedies",
                "--settings=sonnet",
                "--seeds=3",
                f"--jobs={_JOBS}",
            ],
        ),
        _decide_study,
        ("cifar10", "matplotlib"),
    ),
    "tokenizers": Part(
        "How do the estimators compare on the paper's tokenizers? Finished trainings are kept.",
        12,
        functools.partial(_study, "tokenizers", [f"--jobs={_JOBS}"]),
        _decide_study,
        ("imagenette", "matplotlib"),
    ),
    "vit_vqgan": Part(
        "Is ViT-VQGAN's step 1.5 times as fast as the compiled original?",
        6,
        functools.partial(_tokenizer, "vit_vqgan"),
        _decide_tokenizers,
        ("taming", "enhancing"),
    ),
    "vqgan": Part(
        "Is VQGAN's step 1.5 times as fast as the compiled original?",
        8,
        functools.partial(_tokenizer, "vqgan"),
        _decide_tokenizers,
        ("taming", "enhancing"),
    ),
    "feeding": Part("Are 1,500 images/s of 256 pixels decoded?", 3, _fed, _decide_fed, ("imagenette",)),
    "counting": Part("Which way to count and add up tokens is fastest?", 3, _counting, _decide_counting),
    "fifty_epochs": Part(
        "Do 50 epochs of the study's model take under 60 s in bfloat16?",
        4,
        _fifty_epochs,
        _decide_fifty_epochs,
        ("cifar10",),
    ),
    "interrupted": Part(
        "Does a killed and continued run end bit for bit the same?", 3, _interrupted, _decide_interrupted
    ),
    "sonnet": Part("Does sonnet's model reach the CPU's figures?", 5, _sonnet, _decide_sonnet, ("cifar10",)),
    **{
        f"train_step_{name}": Part(
            f"Is a training step of {name} as fast as the compiled PyTorch loop?",
            3,
            functools.partial(_train_step, name),
            _decide_train_step,
            ("vector_quantize_pytorch",),
        )
        for name in train_step.BATCH_SIZES
    },
    "sampling": Part(
        "Are tokens drawn as fast as in a compiled PyTorch loop?", 5, _sampled, _decide_sampled, ("torch",)
    ),
    "dispatch": Part("How many steps per dispatch are best?", 4, _dispatches, _decide_dispatches, ("cifar10",)),
    "accumulation": Part("What do batches in parts cost?", 4, _accumulated, _decide_accumulated, ("cifar10",)),
    "startup": Part("Is the second start under 10 s?", 4, _startups, _decide_startups, ("cifar10",)),
    "scaling": Part("How does the cost grow?", 4, _growth, _decide_growth),
    "classification": Part(
        "What do quantizers cost in classifiers, in 30 epochs? Finished trainings are kept.",
        40,
        functools.partial(_study, "classification", ["--scale=short", f"--jobs={_JOBS}"]),
        _decide_study,
        ("cifar10", "matplotlib"),
    ),
    "generation": Part(
        "What do models draw over codes that are learned without remedies? Finished trainings are kept.",
        20,
        functools.partial(_study, "generation", ["--scale=short", "--tokenizers=learned codes"]),
        _decide_study,
        ("cifar10", "matplotlib"),
    ),
    "video": Part(
        "Does straight-through diverge on clips? Finished trainings are kept.",
        12,
        functools.partial(_study, "video", [f"--jobs={_JOBS}"]),
        _decide_study,
        ("matplotlib",),
    ),
    "study": Part(
        "What are the tables of the CIFAR-10 study at full scale? Finished runs are kept.",
        300,
        functools.partial(_study, "reproduction", ["--scale=full"]),
        _decide_study,
        ("cifar10", "matplotlib", "sklearn"),
    ),
}
"""The campaign in order of value. A new question is one entry."""


if __name__ == "__main__":
    main()
