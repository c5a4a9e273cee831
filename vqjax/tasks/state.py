"""Everything that changes during training, as one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vqjax.models import VQVAE


class TrainState(flax.struct.PyTreeNode):
    """What a checkpoint holds. The position in the data and all randomness follow from ``step`` and the seed.

    The fields hold arrays, or their shapes where only the structure is meant.

    Attributes:
      step: Number of steps taken, an int32 scalar.
      params: What the optimizer moves.
      collections: All other variables of the model, such as ``codebook``; the optimizer never sees them.
      opt_state: State of the optimizer under ``task``, and of one for the codebook alone under ``codebook``.
      window: Sums of the metrics since the last log line, and under ``steps`` the number of steps in them. Part of
        the state so that the log of a resumed run equals that of an uninterrupted one.
    """

    step: Any
    params: Any
    collections: Any
    opt_state: Any
    window: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the model, as ``Module.apply`` takes them."""
        return {"params": self.params, **self.collections}


def create_state(
    model: VQVAE,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    codebook_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Initializes the model and the optimizer.

    Args:
      model: The autoencoder.
      optimizer: Its optimizer.
      image_shape: Height, width and channels.
      seed: Of the initial values.
      codebook_optimizer: Of the quantizer's parameters alone, where it takes steps of its own.

    Returns:
      The state before the first step, with an empty window.

    Raises:
      UserError: The model refuses images of that shape.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> from vqjax.models import SonnetDecoder, SonnetEncoder
      >>> model = VQVAE(SonnetEncoder(width=8, latent_dim=4), VectorQuantizer(num_codes=16), SonnetDecoder(width=8))
      >>> int(create_state(model, optax.adam(1e-3), (16, 16, 3), seed=0).step)
      0
    """
    params_key, quantizer_key = jax.random.split(jax.random.key(seed))
    # As one program: it is kept between starts, and hundreds of small ones would not be.
    init = jax.jit(model.init)
    variables = init({"params": params_key, "quantizer": quantizer_key}, jnp.zeros((1, *image_shape)))
    params = variables.pop("params")
    opt_state = {"task": optimizer.init(params)}
    if codebook_optimizer is not None:
        opt_state["codebook"] = codebook_optimizer.init(params["quantizer"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=variables,
        opt_state=opt_state,
        window={},
    )


def check_model(model: VQVAE, config: ConfigDict) -> None:
    """Finds, before anything is loaded or computed, what only the shape of the images tells.

    Args:
      model: The autoencoder.
      config: The run's config.

    Raises:
      UserError: The model refuses images of that size.
    """
    images = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(model.init, {"params": key, "quantizer": key}, images)
