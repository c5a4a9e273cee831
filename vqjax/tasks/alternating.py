"""Alternating optimization: extra updates of the codebook before each training step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from vqjax.data import Batch, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.models.tokenizer import NETWORK
from vqjax.quantizers import VectorQuantizer
from vqjax.quantizers.codebooks import get_codebook
from vqjax.quantizers.validation import is_fraction, require, require_count, require_positive
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Metrics
from vqjax.tasks.vqvae import VQVAETask

_CODEBOOK = "codebook"


@dataclasses.dataclass(frozen=True)
class AlternatingTask(VQVAETask):
    """The VQ-VAE task with extra codebook updates before each training step.

    The codebook must be learned by gradient with ``weight=0``; in these updates SGD moves its codes towards the latents
    of the batch. The other attributes are those of :class:`vqjax.tasks.vqvae.VQVAETask`.

    Attributes:
      codebook_steps: Number of codebook updates before each training step.
      codebook_learning_rate: Learning rate of these updates.
      codebook_momentum: Momentum of these updates.

    Raises:
      UserError: An argument is out of range, the codes are not learned by gradient, or ``weight`` is not 0.

    Source: Huh et al., ICML 2023 ("Straightening out the straight-through estimator"), Section 4.2.
    """

    _: dataclasses.KW_ONLY
    codebook_steps: int = 1
    codebook_learning_rate: float = 1.0
    codebook_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("codebook_steps", self.codebook_steps, largest=1000)
        require_positive("codebook_learning_rate", self.codebook_learning_rate)
        in_range = is_fraction(self.codebook_momentum)
        require(in_range, "codebook_momentum", self.codebook_momentum, "a number in [0, 1)")
        quantizer = self.model.quantizer
        if not isinstance(quantizer, VectorQuantizer) or not get_codebook(quantizer.codebook).is_learned:
            got = type(getattr(quantizer, "codebook", quantizer)).__name__
            raise UserError(
                f"The codes of the quantizer must be learned by gradient for the task 'alternating', got {got}; use "
                "the quantizer 'vq' with codebook.name='gradient', or the task 'vqvae'."
            )
        weight = get_codebook(quantizer.codebook).weight
        if weight != 0:
            raise UserError(
                f"The quantizer's codebook.weight must be 0 for the task 'alternating', got {weight}; otherwise the "
                "codebook loss would be applied twice."
            )

    @property
    def codebook_optimizer(self) -> optax.GradientTransformation:
        """Optimizer of the codebook updates."""
        return optax.sgd(self.codebook_learning_rate, momentum=self.codebook_momentum)

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        state = super().init(key, batch)
        of_codebook = self.codebook_optimizer.init(state.params[NETWORK]["quantizer"])
        return state.replace(opt_state=state.opt_state | {_CODEBOOK: of_codebook})

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Update the codebook, then take a step of the VQ-VAE task; see :meth:`Task.train_step`."""
        augment_key, _, _ = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, pixels_of(batch)))
        variables, params = state.trained(NETWORK), state.params[NETWORK]
        latents = self.model.apply(variables, images, train=False, method="latents")

        def codebook_loss(quantizer: PyTree) -> Float[Array, ""]:
            with_quantizer = variables | {"params": params | {"quantizer": quantizer}}
            return self.model.apply(with_quantizer, latents, method=lambda model, z: model.quantizer.codebook_loss(z))

        quantizer, of_codebook = alternating_steps(
            codebook_loss, params["quantizer"], self.codebook_optimizer, state.opt_state[_CODEBOOK], self.codebook_steps
        )
        state = state.replace(
            params=state.params | {NETWORK: params | {"quantizer": quantizer}},
            opt_state=state.opt_state | {_CODEBOOK: of_codebook},
        )
        return super().train_step(state, batch, key)


def alternating_steps(
    codebook_loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    num_steps: int,
) -> tuple[PyTree, Any]:
    """Take gradient steps on the codebook loss.

    The latents are those of the current batch and encoder, held constant, so the codes catch up with the encoder before
    the task's gradient is evaluated. The ``weight`` of the codebook has to be 0: otherwise the codebook loss is applied
    twice.

    Args:
      codebook_loss: Loss as a function of the parameters, such as
        ``lambda params: vq.apply({**variables, "params": params}, z, method="codebook_loss")``.
      params: Parameters of the quantizer.
      optimizer: Optimizer of the codebook alone.
      opt_state: State of ``optimizer``.
      num_steps: Number of steps; latents are reassigned to codes at every step.

    Returns:
      The parameters and the optimizer's state after the steps.

    Example:
      >>> import jax, optax
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=8, codebook=GradientCodebook(weight=0.0))
      >>> variables = vq.init(jax.random.key(1), z)
      >>> loss = lambda params: vq.apply({**variables, "params": params}, z, method="codebook_loss")
      >>> optimizer = optax.sgd(1.0, momentum=0.9)
      >>> start = variables["params"]
      >>> params, _ = alternating_steps(loss, start, optimizer, optimizer.init(start), num_steps=5)
      >>> bool(loss(params) < loss(start))
      True

    Source: Huh et al., ICML 2023 ("Straightening out the straight-through estimator"), Section 4.2.
    """

    def step(_: Int[Array, ""] | int, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(codebook_loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, num_steps, step, (params, opt_state))
