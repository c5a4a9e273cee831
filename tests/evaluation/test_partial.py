"""Evaluations that were killed, and go on from their partial sums."""

import itertools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.evaluation import (
    CodeUsage,
    Metric,
    Pictures,
    ReconstructionFID,
    Rows,
    evaluate,
    tokenizer_metrics,
)
from vqjax.evaluation.features import FeatureNetwork
from vqjax.evaluation.fid import FeatureMoments
from vqjax.evaluation.partial import PartialSums
from vqjax.models.inception import InceptionFeatures


class Colors(nn.Module):
    """A network of three features: mean colors."""

    @nn.compact
    def __call__(self, images):
        colors = jnp.mean(images, axis=(1, 2))
        return InceptionFeatures(colors, 5 * colors, colors**2)


COLORS = FeatureNetwork(Colors(), {}, name="colors", weights="none", size=None)
METRICS = [*tokenizer_metrics(8), ReconstructionFID(COLORS, wrapped=True)]
COLLECTORS = [Pictures(limit=5), Rows(("indices", "index")), FeatureMoments(COLORS)]
IMAGES = np.random.default_rng(0).integers(0, 256, (22, 12, 12, 3), np.uint8)


def batches(start=0, size=4):
    for first in range(start, len(IMAGES), size):
        index = np.arange(first, first + size, dtype=np.int32)
        yield {"image": IMAGES[index % len(IMAGES)], "valid": index < len(IMAGES), "index": index}


def darker(batch):
    image = batch["image"] / 127.5 - 1
    return {"reconstruction": 1.1 * image - 0.1, "indices": batch["image"][:, ::4, ::4, 0].astype(jnp.int32) // 32}


def killed_after(number, path, key="this"):
    """Evaluate until a batch cannot be read."""

    def cut():
        yield from itertools.islice(batches(), number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(darker, cut(), [*METRICS, *COLLECTORS], partial=PartialSums(path, key, every=0.0))


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_killed_evaluation_goes_on_to_the_same_numbers(number, tmp_path):
    whole = evaluate(darker, batches(), [*METRICS, *COLLECTORS], intervals=True)
    killed_after(number, tmp_path / "partial.npz")
    found = PartialSums(tmp_path / "partial.npz", "this")
    assert (found.images, found.next_index) == (4 * number, 4 * number)
    seen = []
    rest = evaluate(
        darker,
        batches(found.next_index),
        [*METRICS, *COLLECTORS],
        intervals=True,
        partial=found,
        progress=seen.append,
    )
    assert rest.metrics == whole.metrics
    assert rest.intervals == whole.intervals
    assert seen == [*range(4 * number + 4, 22, 4), 22]
    for name, rows in whole.collected.items():
        np.testing.assert_array_equal(rest.collected[name], rows)
    found.remove()
    assert not any(tmp_path.iterdir())


def test_sums_of_another_evaluation_or_of_a_cut_file_are_not_used(tmp_path):
    path = tmp_path / "partial.npz"
    killed_after(2, path)
    evaluate(darker, batches(), METRICS, partial=PartialSums(path, "another", every=0.0))
    PartialSums(path, "another").remove()
    found = PartialSums(path, "this")
    assert found.images == 8
    content = found.path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 5):
        found.path.write_bytes(content[:length])
        assert PartialSums(path, "this").next_index == 0
    np.savez(found.path, content=np.array([None]))
    assert PartialSums(path, "this").next_index == 0
    result = evaluate(darker, batches(), METRICS, partial=PartialSums(path, "this"))
    assert result.metrics == evaluate(darker, batches(), METRICS).metrics


def test_what_was_being_stored_at_a_kill_is_removed(tmp_path):
    file = PartialSums(tmp_path / "partial.npz", "this").path
    (unfinished := file.with_name(f".{file.name}.7.0123abcd.partial")).touch()
    (other := file.with_name(f".{file.name[:-5]}x.npz.7.0123abcd.partial")).touch()
    PartialSums(tmp_path / "partial.npz", "this")
    assert not unfinished.exists()
    assert other.exists()


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqjax.evaluation.partial.atomic_file", refuse)
    partial = PartialSums(tmp_path / "partial.npz", "this", every=0.0)
    assert evaluate(darker, batches(), METRICS, partial=partial).metrics["images"] == 22
    assert capsys.readouterr().err.count("partial sums cannot be stored ([Errno 28] No space left on device)") == 1


def test_sums_are_stored_once_a_minute(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vqjax.evaluation.partial.time.monotonic", lambda: now[0])
    partial = PartialSums(tmp_path / "partial.npz", "this")
    saved = []
    for now[0] in (30.0, 59.0, 61.0, 100.0, 122.0):
        saved.append(partial.save([()], images=1, next_index=1))
    assert saved == [False, False, True, False, True]


class Odd(Metric):
    """A metric whose state nobody can store."""

    @property
    def protocol(self):
        return {"odd": "whether the last image is not the first"}

    def measure(self, outputs):
        return outputs["index"]

    def init(self):
        return {0}

    def update(self, state, measured):
        return state | set(np.asarray(measured).tolist())

    def compute(self, state):
        return {"odd": len(state)}


def test_a_metric_of_ones_own_may_have_any_state(tmp_path):
    partial = PartialSums(tmp_path / "partial.npz", "this", every=0.0)
    assert evaluate(darker, batches(), [CodeUsage(8), Odd()], partial=partial).metrics["odd"] == 24
    assert not any(tmp_path.iterdir())
