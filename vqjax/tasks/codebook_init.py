"""Starts the codebook from the data, before the first step."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from vqjax.data import ImageDataset, UnreadableImage, batch_indices, to_model_range
from vqjax.data.reading import read_many
from vqjax.models import VQVAE
from vqjax.tasks.state import TrainState

TOKENS_PER_CODE = 64
MOST_TOKENS = 2**18
# No training step has this number, and a run that is made longer later starts from the same codes.
_KEY_NUMBER = 2**31 - 1


def start_from_kmeans(model: VQVAE, state: TrainState, dataset: ImageDataset, config: ConfigDict) -> TrainState:
    """Clusters the untrained encoder's vectors of the first training batches, and makes the clusters the codes.

    Args:
      model: The autoencoder.
      state: Before the first step.
      dataset: The training images.
      config: Gives the order of the images, the batch size and the number of codes.

    Returns:
      The state with another codebook.
    """
    wanted = min(TOKENS_PER_CODE * model.quantizer.num_codes, MOST_TOKENS)
    latents = jax.jit(lambda variables, images: model.apply(variables, images, method="latents"))
    batches: list[Float[Array, "batch rows columns dim"]] = []
    # Grouped after the unreadable images have dropped out: another batch size would be compiled for itself.
    for images in itertools.batched(_readable_in_training_order(dataset, config), config.batch_size):
        if len(images) == config.batch_size or not batches:
            batches.append(latents(state.variables, to_model_range(np.stack(images))))
        if sum(batch.size // batch.shape[-1] for batch in batches) >= wanted:
            break
    key = jax.random.fold_in(jax.random.key(config.seed), _KEY_NUMBER)
    _, started = jax.jit(
        lambda variables, z: model.apply(
            variables,
            z,
            method=lambda model, z: model.quantizer.kmeans_init(z),
            mutable=list(state.collections),
            rngs={"quantizer": key},
        )
    )(state.variables, jnp.concatenate(batches))
    return state.replace(collections=state.collections | started)


def _readable_in_training_order(dataset: ImageDataset, config: ConfigDict) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    for step in range(len(dataset) // config.batch_size):
        indices = batch_indices(config.seed, step, config.batch_size, len(dataset))
        for image in read_many(dataset, indices.tolist()):
            if not isinstance(image, UnreadableImage):
                yield image
