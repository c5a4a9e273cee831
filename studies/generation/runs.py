"""Runs of the study: a tokenizer, its tokens, a model of them, and samples."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from studies.common.records import Run, slug
from studies.common.trainings import Setting, config_of
from studies.generation import measures
from vqjax.checkpointing.checkpoints import load_tokenizer
from vqjax.checkpointing.discovery import find_checkpoint
from vqjax.data import load_splits, materialize, to_uint8
from vqjax.data.tokens import token_splits
from vqjax.evaluation.features import FeatureNetwork
from vqjax.models.tokenizer import Tokenizer
from vqjax.reporting import comparison_sheet, save_png
from vqjax.training.loop import train
from vqjax.training.sample import sample_images
from vqjax.training.tokens import write_tokens

TOKENIZERS = {
    "sonnet": (),
    "learned codes": ("quantizer.codebook.name=gradient",),
    "affine and alternating": (
        "quantizer.codebook.name=gradient",
        "quantizer.codebook.weight=0",
        "quantizer.codebook.transform.name=learned_affine",
        "task.name=alternating",
    ),
}
"""Changes of configs/cifar10.py:sonnet by the name of a tokenizer."""

MODELS = {"causal": "", "masked": "masked"}
"""Arguments of configs/generate.py by the name of a model."""

_LARGER = ("model.dim=192", "model.depth=6", "model.heads=6")
SCALES = {
    "cpu": Setting("configs/generate.py:tiny"),
    "short": Setting("configs/generate.py:tiny", changes=_LARGER),
    "full": Setting("configs/generate.py:steps=50000"),
}
"""The model of tokens by scale: for two CPU cores, for ten minutes of a GPU, and for a GPU."""

_SAMPLES = {"causal": {}, "masked": {"num_steps": 16}}
GUIDANCES = (1.5, 2.0, 3.0, 4.0, 5.0)
"""Guidances of the samples. Those are compared further that are about as far from held-out images as reconstructions.

No model of tokens makes better images than these, but guidance brings samples nearer yet: to what the classifier, of
whose features this is the distance, takes for its classes.
"""

_COMPARED = 500
_SHOWN = 16


class Pipeline(NamedTuple):
    """Configs of the trainings, and the directories of those that several runs share.

    Attributes:
      tokenizer: Config of the tokenizer.
      classifier: Config of the classifier that looks at samples.
      model: Config of the model of tokens.
      shared: Directory of tokenizers, tokens and the classifier.
      name: Name of the tokenizer.
    """

    tokenizer: ConfigDict
    classifier: ConfigDict
    model: ConfigDict
    shared: Path
    name: str


def study_runs(tokenizers: list[str], models: list[str], scale: str) -> list[Run]:
    """List the runs.

    Args:
      tokenizers: Keys of ``TOKENIZERS``.
      models: Keys of ``MODELS``.
      scale: A key of ``SCALES``.
    """
    return [
        Run(f"{scale}/{model}--{tokenizer}", {"scale": scale, "model": model, "tokenizer": tokenizer})
        for tokenizer in tokenizers
        for model in models
    ]


def pipeline_of(run: Run, directory: Path) -> Pipeline:
    """Return the configs of a run.

    Args:
      run: The run.
      directory: Its directory; what it shares with others lies beside it.
    """
    of, shared = run.settings, directory.parent / "shared"
    tokenizer = Setting("configs/cifar10.py:sonnet", changes=TOKENIZERS[of["tokenizer"]])
    small = "epochs=50" if of["scale"] == "full" else "small,epochs=10"
    classifier = Setting(f"configs/classify_cifar10.py:{small}")
    name = of["tokenizer"]
    places = f"tokens={_tokens(shared, name)},tokenizer={_tokenizer(shared, name)}"
    scale = SCALES[of["scale"]]
    model = scale._replace(config=",".join(filter(None, (scale.config, MODELS[of["model"]], places))))
    configs = [config_of(setting, [], steps=setting.length, seed=0) for setting in (tokenizer, classifier, model)]
    # For the curve.
    configs[2].eval_every = configs[2].checkpoint_every = configs[2].num_steps // 8
    return Pipeline(*configs, shared, name)


def _tokenizer(shared: Path, name: str) -> Path:
    return shared / f"tokenizer_{slug(name)}"


def _tokens(shared: Path, name: str) -> Path:
    return shared / f"tokens_{slug(name)}"


def measure_run(run: Run, directory: Path) -> dict[str, Any]:
    """Train what a run needs, draw samples, and measure them."""
    return measure(pipeline_of(run, directory), directory, _SAMPLES[run.settings["model"]])


def measure(pipeline: Pipeline, directory: Path, options: Mapping[str, Any], num: int = 10_000) -> dict[str, Any]:
    """Train what a pipeline needs, draw samples, and measure them.

    Args:
      pipeline: The configs.
      directory: Directory of the model of tokens.
      options: Options of :func:`vqjax.training.sample.sample_images`.
      num: Most images of each set.

    Returns:
      Numbers by name, and the curve of the held-out bits per token.
    """
    shared = pipeline.shared
    of_tokenizer, tokens, classifier = prepare(pipeline)
    _trained(pipeline.model, directory)
    splits = token_splits(tokens)
    rows = [_rows(dataset) for dataset in splits]
    num_codes = splits.train.info.num_codes[0]
    of_tokens = {
        "unigram_bits": measures.unigram_bits(*rows, num_codes),
        "bigram_bits": measures.bigram_bits(*rows, num_codes),
        "curve": _curve(directory),
    }
    grid = splits.train.info.shape
    unigram = measures.unigram_samples(rows[0], num, num_codes).reshape(-1, *grid)
    images, tokenizer = load_splits(pipeline.tokenizer.data), load_tokenizer(of_tokenizer)
    originals = materialize(images.eval)
    held_out, labels = originals["image"][:num], originals["label"][:num]
    drawn = {guidance: _drawn(directory, num, guidance, options) for guidance in GUIDANCES}
    sets = drawn | {
        "unigram": (_decoded(tokenizer, unigram), None),
        "reconstructions": (_decoded(tokenizer, rows[1][:num].reshape(-1, *grid)), labels),
        "originals": (held_out, labels),
    }
    gallery = measures.Gallery(FeatureNetwork.from_file(classifier))
    looks = {name: _look(gallery, *of) for name, of in sets.items()}
    distances = {name: measures.distance(look.vectors, looks["originals"].vectors) for name, look in looks.items()}
    best = min(GUIDANCES, key=lambda guidance: abs(distances[guidance] - distances["reconstructions"]))
    looks["samples"], distances["samples"] = looks[best], distances[best]
    gap = distances["unigram"] - distances["reconstructions"]
    of_images = {
        "guidance": best,
        "by_guidance": [[guidance, distances[guidance], looks[guidance].recognized] for guidance in GUIDANCES],
        "gap_closed": (distances["unigram"] - distances["samples"]) / gap,
        **{f"recognized_{name}": looks[name].recognized for name in ("samples", "reconstructions", "originals")},
        **{f"distance_{name}": distances[name] for name in ("samples", "reconstructions", "unigram")},
    }
    pictures = shared / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.copy(_picture(directory, best), pictures / f"{directory.name}_samples.png")
    training = materialize(images.train)["image"]
    of_training = _look(gallery, training, None).vectors
    nearest = {
        name: measures.nearest(looks[name].vectors[:_COMPARED], of_training) for name in ("samples", "originals")
    }
    of_images |= {f"nearest_{name}": float(np.median(length)) for name, (_, length) in nearest.items()}
    pairs = drawn[best][0][:_SHOWN], training[nearest["samples"][0][:_SHOWN]]
    sheet = comparison_sheet(*pairs, captions=("sample", "nearest image"))
    save_png(pictures / f"{directory.name}_nearest.png", sheet)
    return of_tokens | {"bits": of_tokens["curve"][-1][1]} | of_images


def prepare_run(run: Run, directory: Path) -> None:
    """Train what a run shares with others."""
    prepare(pipeline_of(run, directory))


def prepare(pipeline: Pipeline) -> tuple[Path, Path, Path]:
    """Train tokenizer and classifier of a pipeline, and write the tokens, unless that is done.

    Args:
      pipeline: The configs.

    Returns:
      Directories of the tokenizer, the tokens and the classifier.
    """
    shared, name = pipeline.shared, pipeline.name
    # The larger classifier of the full scale is another network, with other distances.
    classifier = shared / f"classifier_of_{pipeline.classifier.num_steps}_steps"
    _trained(pipeline.tokenizer, _tokenizer(shared, name))
    _trained(pipeline.classifier, classifier)
    write_tokens(_tokenizer(shared, name), out=_tokens(shared, name), flip=True)
    return _tokenizer(shared, name), _tokens(shared, name), classifier


def _drawn(
    directory: Path, num: int, guidance: float, options: Mapping[str, Any]
) -> tuple[measures.Images, Int[np.ndarray, " images"]]:
    """Samples and their classes; they and their picture stay in the directory."""
    file = directory / f"samples_{guidance:g}.npz"
    if not file.exists():
        sample_images(directory, out=file, num=num, guidance=guidance, batch_size=250, **options)
    samples = np.load(file)
    return samples["arr_0"], samples["arr_1"]


def _picture(directory: Path, guidance: float) -> Path:
    return directory / f"samples_{guidance:g}.png"


class _Look(NamedTuple):
    """Features of a set of images, and how many of them the classifier recognizes."""

    vectors: Float[np.ndarray, "images dim"]
    recognized: float | None  # share of images; None without classes


def _look(gallery: measures.Gallery, images: measures.Images, classes: Int[np.ndarray, " images"] | None) -> _Look:
    vectors, logits = gallery.measure(images)
    return _Look(vectors, None if classes is None else float(np.mean(np.argmax(logits, axis=1) == classes)))


def _trained(config: ConfigDict, directory: Path) -> None:
    """Train, unless that is done."""
    found = find_checkpoint(directory)
    if found is None or found.step < config.num_steps:
        train(config, directory)


def _rows(dataset: Any) -> measures.Tokens:
    return np.stack([dataset[index]["tokens"].reshape(-1) for index in range(len(dataset))]).astype(np.int32)


def _curve(directory: Path) -> list[tuple[int, float]]:
    """Steps, and bits per token of held-out images; where all is masked, of a masked model."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = ("eval/bits_per_token", "eval/bits_per_token_all")
    return [(line["step"], line[name]) for line in lines for name in names if name in line]


def _decoded(tokenizer: Tokenizer, tokens: np.ndarray) -> measures.Images:
    parts = np.array_split(tokens, max(1, len(tokens) // 250))
    return np.concatenate([np.asarray(to_uint8(tokenizer.decode(part))) for part in parts])
