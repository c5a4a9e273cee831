"""Pictures of the codebook of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers.arrays import gaussian
from vqjax import BSQ, FSP, FSQ, LFQ, BinaryMapper, LatentQuantizer, VectorQuantizer
from vqjax.errors import UserError
from vqjax.reporting.codebook_figure import Snapshot, codebook_figure
from vqjax.training.plot import _snapshot, plot_run


def snapshot_of(step=0, dim=3):
    rng = np.random.default_rng(0)
    vectors, codes = (rng.normal(size=(count, dim)).astype(np.float32) for count in (50, 8))
    return Snapshot(step, vectors, codes, rng.integers(0, 4, 50))


@pytest.mark.full
def test_a_picture_of_the_checkpoints_of_a_run(finished, tmp_path, capsys):
    plot_run("codebook", workdir=finished, output=tmp_path)
    with Image.open(tmp_path / "codebook.png") as picture:
        assert picture.width > picture.height > 500
    assert "codebook.png" in capsys.readouterr().out


def test_the_numbers_in_a_picture():
    snapshot = snapshot_of()
    assert snapshot.counts.sum() == 50
    assert snapshot.counts[4:].sum() == 0
    exact = snapshot._replace(vectors=snapshot.codes[snapshot.indices])
    assert exact.relative_error == 0
    moved = exact._replace(codes=exact.codes + 7)
    assert moved.shift > exact.shift


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_axes_are_the_same_for_all_steps(dim):
    figure = codebook_figure([snapshot_of(step, dim) for step in range(2)], "run")
    first, second = figure.axes[:2]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_title() == "step 0: 4 of 8 codes"


def test_codes_in_another_space_than_their_vectors_are_refused():
    quantizer, vectors = BinaryMapper(bits=3), jnp.zeros((5, 3))
    variables = quantizer.init(jax.random.key(0), vectors)
    with pytest.raises(UserError, match="got BinaryMapper, which maps 3 features to 8"):
        _snapshot(0, quantizer, variables, vectors)


@pytest.mark.parametrize("options", [{"latent_norm": "rms"}, {"codebook_dim": 2, "distance": "cosine"}])
def test_vectors_are_drawn_as_they_are_compared_with_the_codes(options):
    """Bug: vectors were those in front of the norm, far from all codes."""
    quantizer, vectors = VectorQuantizer(16, **options), 0.01 * gaussian(64, 4)
    variables = quantizer.init(jax.random.key(0), vectors)
    snapshot = _snapshot(0, quantizer, variables, vectors)
    lengths = [np.linalg.norm(part, axis=-1).mean() for part in (snapshot.vectors, snapshot.codes)]
    assert 0.5 < lengths[0] / lengths[1] < 2


@pytest.mark.parametrize(
    "quantizer",
    [FSQ((8, 8)), FSP((8, 8)), LatentQuantizer((8, 8)), BSQ(2), LFQ(2), VectorQuantizer(16, distance="cosine")],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_the_error_in_the_picture_is_that_of_the_quantizer(quantizer):
    """Bug: vectors of quantizers with bounds were those in front of the bounds."""
    vectors = 3 * gaussian(64, 2)
    keys = {"params": jax.random.key(0), "quantizer": jax.random.key(1)}
    variables = quantizer.init(keys, vectors)
    snapshot = _snapshot(0, quantizer, variables, vectors)
    error = np.mean(np.square(snapshot.vectors - snapshot.codes[snapshot.indices]))
    expected = quantizer.apply(variables, vectors, train=False).metrics["relative_error"]
    assert error / np.mean(np.square(snapshot.vectors)) == pytest.approx(float(expected), rel=1e-4)


def test_what_cannot_be_drawn_is_refused(tmp_path, finished):
    with pytest.raises(UserError, match="--images must be at least 1, got 0"):
        plot_run("codebook", workdir=finished, images=0)
    with pytest.raises(UserError, match="contains no checkpoint"):
        plot_run("codebook", workdir=tmp_path)
