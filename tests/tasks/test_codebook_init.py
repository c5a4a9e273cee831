"""The codebook starts from k-means, whatever images are damaged."""

import numpy as np
import optax
import pytest

from vqjax import VectorQuantizer
from vqjax.data import UnreadableImage
from vqjax.models import VQVAE, SonnetDecoder, SonnetEncoder
from vqjax.tasks.codebook_init import start_from_kmeans
from vqjax.tasks.state import create_state
from vqjax.training.config import default_config


class SomeBroken:
    """40 images of random colors, every third of which cannot be read."""

    name, class_names = "some broken", None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index % 3 == 0:
            raise UnreadableImage(f"{index}.png", "broken on purpose")
        color = np.random.default_rng(index).integers(0, 256, (1, 1, 3), dtype=np.uint8)
        return {"image": color.repeat(16, axis=0).repeat(16, axis=1)}


@pytest.mark.parametrize("batch_size", [8, 40])
def test_unreadable_images_do_not_keep_the_codebook_from_being_started(batch_size):
    """Bug: a batch with one unreadable image was left out, and with it, usually, all batches."""
    model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=4), SonnetDecoder(width=8))
    state = create_state(model, optax.sgd(0.1), (16, 16, 3), seed=0)
    config = default_config()
    config.num_steps, config.batch_size, config.quantizer.num_codes = 10, batch_size, 4
    started = start_from_kmeans(model, state, SomeBroken(), config).collections["codebook"]["quantizer"]
    assert (started["codes"] != state.collections["codebook"]["quantizer"]["codes"]).all()
    # 64 tokens per code, which are two batches of 8 images of 16 tokens; or all 26 readable images.
    assert float(started["counts"].sum()) == (256 if batch_size == 8 else 26 * 16)


def test_the_start_does_not_depend_on_how_long_the_run_will_be():
    """Bug: num_steps was part of the key, so that a run made longer later was not the run that was long at once."""
    model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=4), SonnetDecoder(width=8))
    state = create_state(model, optax.sgd(0.1), (16, 16, 3), seed=0)
    config = default_config()
    config.batch_size, config.quantizer.num_codes = 8, 4
    codes = []
    for config.num_steps in (10, 20):
        started = start_from_kmeans(model, state, SomeBroken(), config)
        codes.append(started.collections["codebook"]["quantizer"]["codes"])
    np.testing.assert_array_equal(*codes)
