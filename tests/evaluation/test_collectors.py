"""Collectors keep the rows that they promise, whatever the batches, and no more."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax.evaluation import (
    MSE,
    PSNR,
    SSIM,
    BestAndWorst,
    CodeCounts,
    CodeUsage,
    ImageMean,
    OfFrames,
    OverTime,
    evaluate,
)
from vqjax.evaluation.lpips import PerceptualDistance
from vqjax.evaluation.metrics import Classification
from vqjax.evaluation.partial import PartialSums
from vqjax.tasks.second_stage import TokenLikelihood

COUNT, FIRST, NUM_CODES = 3, 4, 9


class Given(ImageMean):
    """A value that the batch has, of which lower is better, and one that says nothing of quality."""

    higher_is_better: ClassVar = {"given": False, "absent": True}

    @property
    def protocol(self):
        return {"given": "", "other": ""}

    def per_image(self, outputs):
        return {"given": outputs["value"], "other": outputs["value"]}


def batches(values, batch_size, **more):
    """Images that are as bright as their number, behind which padding has the most extreme values."""
    for start in range(0, len(values), batch_size):
        index = np.arange(start, start + batch_size)
        valid = index < len(values)
        yield {
            "image": np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (batch_size, 4, 4, 3)),
            "value": np.where(valid, np.resize(values[start:], batch_size), [-99, 99][start % 2]).astype(np.float32),
            "index": np.where(valid, index, 0).astype(np.int32),
            "valid": valid,
            **{name: column[np.minimum(index, len(values) - 1)] for name, column in more.items()},
        }


def half_as_bright(batch):
    indices = jnp.broadcast_to(batch["index"][:, None, None] % NUM_CODES, (len(batch["index"]), 2, 2))
    return {"reconstruction": batch["image"] / 255.0 - 1, "indices": indices}


def kept(values, batch_size=5, collector=None, mesh=None, **more):
    collector = collector or BestAndWorst((Given(), PSNR()), count=COUNT, first=FIRST)
    return evaluate(half_as_bright, batches(values, batch_size, **more), [Given(), collector], mesh=mesh).collected


def values_of(number):
    """With equal ones."""
    return np.random.default_rng(0).integers(0, number // 2 + 1, number).astype(np.float32)


@pytest.mark.parametrize(("number", "batch_size"), [(23, 5), (23, 2), (2, 5), (23, 40)])
def test_they_are_the_best_and_worst_of_all_images_the_first_of_equals_first(number, batch_size):
    values = values_of(number)
    collected = kept(values, batch_size)
    order = np.argsort(values, kind="stable")
    assert collected["given/best/index"].tolist() == order[:COUNT].tolist()
    assert collected["given/worst/index"].tolist() == np.argsort(-values, kind="stable")[:COUNT].tolist()
    assert collected["first/index"].tolist() == list(range(min(number, FIRST)))
    assert collected["given/best/given"].tolist() == values[order[:COUNT]].tolist()
    assert not any("other" in name or "absent" in name for name in collected)


def test_each_row_is_of_one_image():
    labels = np.arange(23, dtype=np.int32) * 7
    collected = kept(values_of(23), label=labels)
    lists = {name.removesuffix("/index") for name in collected if name.endswith("/index")}
    assert lists == {"first", "given/best", "given/worst", "psnr/best", "psnr/worst"}
    for name in lists:
        index = collected[f"{name}/index"]
        np.testing.assert_array_equal(collected[f"{name}/image"][:, 0, 0, 0], index)
        np.testing.assert_allclose(collected[f"{name}/reconstruction"][:, 0, 0, 0], index / 2, atol=0.5)
        np.testing.assert_array_equal(collected[f"{name}/indices"], np.tile((index % NUM_CODES)[:, None, None], (2, 2)))
        np.testing.assert_array_equal(collected[f"{name}/label"], labels[index])
        np.testing.assert_array_equal(collected[f"{name}/given"], values_of(23)[index])
    # Brighter images lose more.
    assert collected["psnr/best/index"].tolist() == [0, 1, 2]
    assert collected["psnr/worst/index"].tolist() == [22, 21, 20]


def test_what_is_not_a_number_is_worst():
    values = values_of(12)
    values[[3, 8]] = np.nan
    collected = kept(values)
    assert collected["given/worst/index"].tolist()[:2] == [3, 8]
    assert not {3, 8} & set(collected["given/best/index"].tolist())


def test_every_metric_of_images_orders_them():
    package = {metric for metric in ImageMean.__subclasses__() if metric.__module__.startswith("vqjax.")}
    # A classifier and a transformer over tokens have no pictures to show; the order of a metric of frames is that of
    # the metric.
    of_images = package - {Classification, TokenLikelihood, OfFrames}
    assert {MSE, PSNR, SSIM, PerceptualDistance, OverTime} <= of_images
    for metric in (*of_images, OfFrames(PSNR())):
        assert metric.higher_is_better


def test_devices_do_not_matter():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one, eight = kept(values_of(23)), kept(values_of(23), mesh=mesh)
    assert one.keys() == eight.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(eight[name], column, err_msg=name)


def test_the_state_does_not_grow_with_the_split():
    collector = BestAndWorst((Given(), MSE()), count=COUNT, first=FIRST)
    measure = jax.jit(lambda batch: collector.measure(batch | half_as_bright(batch)))
    state, sizes = collector.init(), []
    for batch in batches(values_of(20), 5):
        state = collector.update(state, measure(batch))
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    assert sizes[-1] == sizes[0] == max(sizes)


def test_an_interrupted_evaluation_goes_on_with_what_was_kept(tmp_path):
    all_batches = list(batches(values_of(23), 5))
    metrics = [BestAndWorst((Given(), MSE()), count=COUNT, first=FIRST), CodeCounts(NUM_CODES)]

    def partial_sums():
        return PartialSums(tmp_path / "partial.npz", "these images", every=0.0)

    def interrupted(images):
        if images == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(half_as_bright, all_batches, metrics, progress=interrupted, partial=partial_sums())
    found = partial_sums()
    assert found.next_index == 10
    resumed = evaluate(half_as_bright, all_batches[2:], metrics, partial=found).collected
    whole = evaluate(half_as_bright, all_batches, metrics).collected
    assert resumed.keys() == whole.keys()
    for name, column in whole.items():
        np.testing.assert_array_equal(resumed[name], column, err_msg=name)


def test_without_reconstructions_nothing_is_kept():
    collector = BestAndWorst((), count=COUNT)
    assert evaluate(lambda batch: {}, batches(values_of(7), 5), [collector]).collected == {}


@pytest.mark.parametrize("num_codes", [NUM_CODES, (NUM_CODES, 12)])
def test_counts_of_codes_are_those_of_all_valid_tokens(num_codes):
    sizes = num_codes if isinstance(num_codes, tuple) else (num_codes,)
    indices = np.stack([np.random.default_rng(size).integers(0, size, (23, 2, 2)) for size in sizes], axis=-1)
    indices = indices.astype(np.int32)

    def outputs(batch):
        return {"indices": batch["tokens"]}

    metrics = [CodeCounts(num_codes), CodeUsage(num_codes)]
    result = evaluate(outputs, batches(values_of(23), 5, tokens=indices), metrics)
    for codebook, size in enumerate(sizes):
        expected = np.bincount(indices[..., codebook].ravel(), minlength=size)
        np.testing.assert_array_equal(result.collected[f"code_counts_{codebook}"], expected)
    dead = sum(int((counts == 0).sum()) for counts in result.collected.values())
    assert dead == result.metrics["dead_codes_split"]
