"""The study of models of tokens: its runs can be built, and a small one goes from images to numbers."""

import shutil

import jax
import numpy as np
import pytest

from studies.common.records import Results
from studies.generation import measures
from studies.generation.report import document_parts
from studies.generation.runs import MODELS, SCALES, TOKENIZERS, Pipeline, measure, pipeline_of, study_runs
from vqjax.models.registry import build_model
from vqjax.training.config import base_config


@pytest.mark.full
@pytest.mark.parametrize("scale", SCALES)
def test_every_run_can_be_built(scale, tmp_path):
    runs = study_runs(list(TOKENIZERS), list(MODELS), scale)
    assert len(runs) == len(TOKENIZERS) * len(MODELS)
    for run in runs:
        pipeline = pipeline_of(run, tmp_path / "run")
        for config in (pipeline.tokenizer, pipeline.classifier):
            build_model(config.model, config.quantizer)
        assert (
            pipeline.model.task.name == {"causal": "autoregressive", "masked": "masked_tokens"}[run.settings["model"]]
        )
        assert pipeline.model.eval_every * 8 <= pipeline.model.num_steps


def test_entropies_are_those_of_a_known_chain():
    """Codes follow one another with a chance of .9, or stay: .469 bits a token, and one bit without the one before."""
    chance = np.random.default_rng(0)
    moves = chance.random((4000, 40)) < 0.9
    tokens = (chance.integers(0, 2, (4000, 1)) + np.cumsum(moves, axis=1)) % 2
    train, held_out = tokens[:2000], tokens[2000:]
    assert measures.unigram_bits(train, held_out, 2) == pytest.approx(1, abs=1e-3)
    assert measures.bigram_bits(train, held_out, 2) == pytest.approx((1 + 39 * 0.469) / 40, abs=5e-3)


def test_samples_of_frequencies_have_them():
    train = np.array([[0, 0, 0, 2]])
    drawn = measures.unigram_samples(train, 20_000, 3)
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / drawn.size, np.array([3.5, 0.5, 1.5]) / 5.5, atol=0.005)


@pytest.mark.full
def test_a_small_pipeline_is_measured(tmp_path):
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 64), ("test", 32)):
        labels = np.arange(count, dtype=np.int32) % 2
        pixels = 200 * labels[:, None, None, None] + random.integers(0, 50, (count, 16, 16, 3))
        arrays |= {split: pixels.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "images.npz", **arrays)
    data = {"source": "arrays", "name": str(tmp_path / "images.npz"), "image_size": 16}
    configs = []
    for _ in range(3):
        config = base_config()
        config.num_steps, config.batch_size, config.tensorboard, config.data = 8, 16, False, data
        config.eval_every = config.checkpoint_every = 4
        configs.append(config)
    tokenizer, classifier, model = configs
    tokenizer.model = {"name": "sonnet", "width": 8, "latent_dim": 4, "num_residual_blocks": 1}
    tokenizer.quantizer = {"name": "vq", "num_codes": 8}
    classifier.model, classifier.task = {"name": "resnet18", "width": 4, "num_classes": 2}, {"name": "classification"}
    classifier.quantizer, classifier.loss = {}, {"name": "cross_entropy"}
    model.data = {"source": "tokens", "name": str(tmp_path / "shared" / "tokens_small")}
    model.model, model.task = (
        {"name": "causal_transformer", "dim": 16, "depth": 1, "heads": 2},
        {"name": "autoregressive"},
    )
    model.quantizer, model.loss = {}, None
    run = study_runs(["sonnet"], ["causal"], "cpu")[0]
    measured = measure(Pipeline(*configs, tmp_path / "shared", "small"), tmp_path / "run", {"temperature": 0.9}, num=32)
    assert measured["distance_reconstructions"] > 0
    assert 0 < measured["bits"] == measured["curve"][-1][1]
    assert [step for step, _ in measured["curve"]] == [4, 8]
    assert measured["unigram_bits"] <= 3.1
    assert 0 <= measured["recognized_samples"] <= 1
    by_guidance = {guidance: numbers for guidance, *numbers in measured["by_guidance"]}
    assert by_guidance[measured["guidance"]] == [measured["distance_samples"], measured["recognized_samples"]]
    away = {guidance: abs(of[0] - measured["distance_reconstructions"]) for guidance, of in by_guidance.items()}
    assert away[measured["guidance"]] == min(away.values())
    assert {file.name for file in (tmp_path / "shared" / "pictures").iterdir()} == {
        "run_samples.png",
        "run_nearest.png",
    }
    results = Results(tmp_path / "results.jsonl")
    assert document_parts(results, tmp_path)["cpu"].startswith("Not measured yet")
    results.add(run, measured, seconds=1.0)
    table = document_parts(results, tmp_path)["cpu"]
    assert "| sonnet | causal |" in table
    picture = "generation/cpu_causal_sonnet_samples.png"
    assert picture not in table
    (tmp_path / "generation").mkdir()
    shutil.copy(tmp_path / "shared" / "pictures" / "run_samples.png", tmp_path / picture)
    assert picture in document_parts(results, tmp_path)["cpu"]
    assert "by guidance" in table
    assert jax.tree.all(jax.tree.map(np.isfinite, {name: value for name, value in measured.items()}))
