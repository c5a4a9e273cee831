"""Adversarial training of a tokenizer: VQGAN."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from vqjax.data import Batch, to_model_range
from vqjax.data.dataset import pixels_of
from vqjax.errors import UserError
from vqjax.functional.clips import frames_of
from vqjax.functional.convolutions import with_trailing_channels
from vqjax.functional.numbers import is_positive
from vqjax.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    AdversarialName,
    adaptive_weight,
    lecam_penalty,
    r1_penalty,
)
from vqjax.losses.perceptual import PerceptualLoss
from vqjax.models import VQVAE
from vqjax.models.discriminators import PatchGAN, PatchGAN3D
from vqjax.models.feature_discriminator import FROZEN, FeatureDiscriminator
from vqjax.models.tokenizer import NETWORK
from vqjax.models.vqvae import takes_clips
from vqjax.quantizers import QuantizerOutput
from vqjax.quantizers.validation import require, require_choice, require_count, require_weight
from vqjax.tasks.state import TrainState, one_program
from vqjax.tasks.task import Metrics
from vqjax.tasks.vqvae import VQVAETask, image_metrics

DISCRIMINATOR, PERCEPTUAL = "discriminator", "perceptual"
_LOGIT_MEANS = "logit_means"
_LOGIT_DECAY = 0.999
_PATCHGAN = PatchGAN()
_WITH_STATISTICS = PatchGAN | PatchGAN3D | FeatureDiscriminator
_LAST_STEP = 2**31 - 1  # steps are counted in int32
_Order = Literal["together", "generator_first"]

Optimizers = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class VQGANTask(VQVAETask):
    r"""The VQ-VAE task against a discriminator, both in one compiled step.

    The generator descends

    .. math:: L_{rec} + \lambda\, w\, f(t)\, L_{adv} + L_{quantizer}

    with the adaptive weight :math:`\lambda` of :func:`vqjax.losses.adversarial.adaptive_weight`, and the discriminator
    :math:`f(t)\, L_D` and its penalties. The gradient of both terms passes the decoder once: it is taken at the images
    and weighted there.

    Attributes:
      model: The autoencoder. With an adaptive weight, its decoder has the methods ``features`` and ``to_images`` and a
        last layer ``conv_out``, as :class:`vqjax.models.VQGANDecoder` has.
      optimizer: One optimizer for both networks, or one each for ``generator`` and ``discriminator``.
      discriminator: A module that maps images to logits, whose call has an argument ``train``. That of clips has an
        attribute ``takes_clips``, which is True. The frozen network of a
        :class:`vqjax.models.feature_discriminator.FeatureDiscriminator` is in no checkpoint.
      perceptual: A perceptual distance to add to :math:`L_{rec}`; None for none. Its network is frozen, and in no
        checkpoint.
      adversarial: The pair of losses, by its name in :data:`vqjax.losses.adversarial.ADVERSARIAL_LOSSES`.
      adversarial_weight: :math:`w`.
      max_adaptive_weight: Largest :math:`\lambda`; None for :math:`\lambda = 1`.
      start: Step at which :math:`f(t)` becomes positive, for both networks.
      ramp_steps: Steps in which :math:`f(t)` then rises to 1.
      r1_weight: Weight of the R1 penalty; None for none. It needs a discriminator without statistics of the batch.
      r1_every: The penalty is computed every so many steps, with its weight times as large.
      lecam_weight: Weight of the LeCam penalty; None for none.
      order: ``"together"``: both networks learn from one pass. ``"generator_first"``: the discriminator learns from the
        images of the updated generator, which takes a second pass, as in taming-transformers.

    For the other attributes see :class:`vqjax.tasks.vqvae.VQVAETask`.

    Raises:
      UserError: An argument is out of range, or the networks do not have what it needs.

    Source: Esser et al., 2021 (arXiv 2012.09841).
    """

    optimizer: Optimizers
    _: dataclasses.KW_ONLY
    discriminator: nn.Module = _PATCHGAN
    perceptual: PerceptualLoss | None = None
    adversarial: AdversarialName = "hinge"
    adversarial_weight: float = 0.8
    max_adaptive_weight: float | None = 1e4
    start: int = 0
    ramp_steps: int = 0
    r1_weight: float | None = None
    r1_every: int = 16
    lecam_weight: float | None = None
    order: _Order = "together"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("adversarial", self.adversarial, ADVERSARIAL_LOSSES)
        require_choice("order", self.order, get_args(_Order))
        require_weight("adversarial_weight", self.adversarial_weight)
        for name in ("start", "ramp_steps"):
            require_count(name, getattr(self, name), smallest=0, largest=_LAST_STEP)
        for name in ("max_adaptive_weight", "r1_weight", "lecam_weight"):
            value = getattr(self, name)
            require(value is None or is_positive(value), name, value, "a finite number above 0, or None")
        require_count("r1_every", self.r1_every, largest=_LAST_STEP)
        if self.r1_weight is not None and isinstance(self.discriminator, _WITH_STATISTICS):
            raise UserError(
                f"r1_weight must be None for {type(self.discriminator).__name__}, whose logits depend on the "
                f"statistics of the batch, got {self.r1_weight}; use the discriminator 'stylegan'."
            )
        if self.max_adaptive_weight is not None and not hasattr(self.model.decoder, "to_images"):
            raise UserError(
                f"max_adaptive_weight must be None for {type(self.model.decoder).__name__}, which has no last layer by "
                f"the name conv_out, got {self.max_adaptive_weight}; or use the model 'vqgan' or 'vit_vqgan'."
            )
        if getattr(self.discriminator, "takes_clips", False) != takes_clips(self.model):
            made, name = ("clips", "patchgan3d") if takes_clips(self.model) else ("images", "patchgan")
            raise UserError(
                f"discriminator must be one of {made}, which the model makes, got "
                f"{type(self.discriminator).__name__}; use {name!r}."
            )
        if isinstance(self.optimizer, Mapping) and self.optimizer.keys() != {NETWORK, DISCRIMINATOR}:
            names = ", ".join(sorted(self.optimizer))
            raise UserError(f"optimizer must be one, or one each for {NETWORK} and {DISCRIMINATOR}, got {names}.")

    def _optimizer(self, network: str) -> optax.GradientTransformation:
        return self.optimizer[network] if isinstance(self.optimizer, Mapping) else self.optimizer

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Return the state before the first step; see :meth:`Task.init`."""
        generator = super().init(key, batch)
        # Another key than the generator's, so that the generator starts like that of the VQ-VAE task.
        params, variables, opt_state = self._initial_discriminator(jax.random.fold_in(key, 1), batch)
        return generator.replace(
            params=generator.params | {DISCRIMINATOR: params},
            variables=generator.variables | {DISCRIMINATOR: variables},
            opt_state=generator.opt_state | {DISCRIMINATOR: opt_state},
            frozen=self._frozen(),
        )

    @one_program
    def _initial_discriminator(self, key: Key[Array, ""], batch: Batch) -> tuple[PyTree, dict[str, PyTree], Any]:
        """Its parameters, its other variables but those of a frozen network, and the state of its optimizer."""
        variables = self.discriminator.init(key, to_model_range(pixels_of(batch)), train=False)
        params = variables.pop("params")
        variables = {name: tree for name, tree in variables.items() if name != FROZEN}
        if self.lecam_weight is not None:
            variables[_LOGIT_MEANS] = {"real": jnp.float32(0), "fake": jnp.float32(0)}
        return params, variables, self._optimizer(DISCRIMINATOR).init(params)

    def _frozen(self) -> dict[str, PyTree]:
        """Variables by network that never change."""
        frozen = {}
        if self.perceptual is not None:
            frozen[PERCEPTUAL] = jax.tree.map(jnp.asarray, self.perceptual.variables)
        if isinstance(self.discriminator, FeatureDiscriminator):
            frozen[DISCRIMINATOR] = self.discriminator.frozen
        return frozen

    def train_step(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take one step of both networks and one codebook update; see :meth:`Task.train_step`."""
        augment_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, pixels_of(batch)))
        rngs = {"quantizer": quantizer_key, "dropout": dropout_key}
        factor = self.factor(state.step)
        step = self._generator_step(state, images, rngs, factor)
        after = state.apply_gradient(NETWORK, step.gradient, self._optimizer(NETWORK), step.variables)
        fake = step.reconstruction
        if self.order == "generator_first":
            # Codebook and statistics have moved once; this pass only looks codes up.
            fake = self.model.apply(after.trained(NETWORK), images, train=False).reconstruction
        gradient, variables, of_discriminator = self._discriminator_step(state, images, fake, factor)
        after = after.apply_gradient(DISCRIMINATOR, gradient, self._optimizer(DISCRIMINATOR), variables)
        metrics = step.metrics | of_discriminator | {"disc_factor": factor}
        metrics |= {
            "gradient_norm": optax.tree.norm(step.gradient),
            "discriminator_gradient_norm": optax.tree.norm(gradient),
            **self.scheduled(state.step),
        }
        return after.finish_step(self.ema_decay), metrics

    def factor(self, step: Array) -> Float[Array, ""]:
        """Return :math:`f(t)`, the share of the adversarial losses at a step."""
        since = step - self.start
        ramp = jnp.clip((since + 1) / max(1, self.ramp_steps), 0.0, 1.0)
        return jnp.where(since >= 0, ramp, 0.0)

    def _generator_step(
        self, state: TrainState, images: Array, rngs: dict[str, Array], factor: Float[Array, ""]
    ) -> "_GeneratorStep":
        """Gradient of the generator, and what it made."""
        losses, adapts = ADVERSARIAL_LOSSES[self.adversarial], self.max_adaptive_weight is not None
        model = self.model_at(state.step)

        def generate(params: PyTree) -> tuple[tuple[Array, Array], tuple[Metrics, PyTree]]:
            (output, generated), variables = model.apply(
                {"params": params, **state.variables[NETWORK]},
                images,
                method=_to_features if adapts else _to_images,
                mutable=list(state.variables[NETWORK]),
                rngs=rngs,
            )
            return (generated, output.loss), (output.metrics, variables)

        def finish(params: PyTree, features: Array) -> Array:
            return self.model.apply({"params": params}, features, method="to_images") if adapts else features

        params = state.params[NETWORK]
        (features, quantizer_loss), pull, (metrics, variables) = jax.vjp(generate, params, has_aux=True)
        reconstruction, pull_last = jax.vjp(finish, params, features)

        def reconstruct(reconstruction: Array) -> tuple[Float[Array, ""], Metrics]:
            loss = self.loss(reconstruction, images)
            if self.perceptual is None:
                return loss, {}
            pair = (images, reconstruction) if images.ndim == 4 else map(frames_of, (images, reconstruction))
            # The original images are the first argument, as in the original.
            distances = self.perceptual.module.apply(state.frozen[PERCEPTUAL], *pair)
            return loss + self.perceptual.weight * jnp.mean(distances), {"p_loss": jnp.mean(distances)}

        def deceive(reconstruction: Array) -> Float[Array, ""]:
            return losses.generator(self._judge(state, state.trained(DISCRIMINATOR), reconstruction)[0])

        of_images = jax.value_and_grad(reconstruct, has_aux=True)
        (of_reconstruction, of_perception), rises_by = of_images(reconstruction)
        of_adversarial, deceived_by = jax.value_and_grad(deceive)(reconstruction)
        weight = jnp.float32(1)
        if adapts:
            of_layer = [pull_last(slope)[0]["decoder"]["conv_out"] for slope in (rises_by, deceived_by)]
            kernels = [gradient["kernel"] for gradient in of_layer]
            weight = adaptive_weight(*kernels, largest=self.max_adaptive_weight)
        weight = weight * self.adversarial_weight
        of_last, of_features = pull_last(rises_by + factor * weight * deceived_by)
        (of_all,) = pull((of_features, jnp.ones_like(quantizer_loss)))
        loss = of_reconstruction + factor * weight * of_adversarial + quantizer_loss
        return _GeneratorStep(
            gradient=jax.tree.map(jnp.add, of_all, of_last),
            variables=variables,
            reconstruction=reconstruction,
            metrics={
                "loss": loss,
                **image_metrics(reconstruction, images),
                "rec_loss": of_reconstruction,
                **of_perception,
                "quant_loss": quantizer_loss,
                "g_loss": of_adversarial,
                "d_weight": weight,
                **metrics,
            },
        )

    def _discriminator_step(
        self, state: TrainState, images: Array, fake: Array, factor: Float[Array, ""]
    ) -> tuple[PyTree, dict[str, PyTree], Metrics]:
        """Gradient of the discriminator, its other variables after the step, and its metrics."""
        losses, fake = ADVERSARIAL_LOSSES[self.adversarial], jax.lax.stop_gradient(fake)
        variables = state.variables[DISCRIMINATOR]

        def loss_function(params: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, PyTree]]]:
            of_real, after = self._judge(state, {"params": params, **variables}, images)
            of_fake, after = self._judge(state, {"params": params, **after}, fake)
            loss = losses.discriminator(of_real, of_fake)
            metrics = {"disc_loss": loss, "logits_real": jnp.mean(of_real), "logits_fake": jnp.mean(of_fake)}
            # Real logits belong above zero, those of the generator below.
            metrics["disc_accuracy"] = (jnp.mean(of_real > 0) + jnp.mean(of_fake < 0)) / 2
            if self.lecam_weight is not None:
                means = {
                    name: _LOGIT_DECAY * variables[_LOGIT_MEANS][name] + (1 - _LOGIT_DECAY) * metrics[f"logits_{name}"]
                    for name in ("real", "fake")
                }
                means = jax.lax.stop_gradient(means)
                after = after | {_LOGIT_MEANS: means}
                metrics["lecam"] = lecam_penalty(of_real, of_fake, mean_real=means["real"], mean_fake=means["fake"])
                loss += self.lecam_weight * metrics["lecam"]
            return factor * loss, (metrics, after)

        gradient, (metrics, after) = jax.grad(loss_function, has_aux=True)(state.params[DISCRIMINATOR])
        if self.r1_weight is not None:
            metrics["r1"], of_penalty = self._lazy_r1(state, images)
            weight = factor * self.r1_weight * self.r1_every
            gradient = jax.tree.map(lambda of_loss, rise: of_loss + weight * rise, gradient, of_penalty)
        return gradient, after, metrics

    def _lazy_r1(self, state: TrainState, images: Array) -> tuple[Float[Array, ""], PyTree]:
        """The penalty and its gradient; zeros in the steps between."""
        variables = state.variables[DISCRIMINATOR]

        def penalty(params: PyTree) -> Float[Array, ""]:
            return r1_penalty(lambda images: self._judge(state, {"params": params, **variables}, images)[0], images)

        def nothing(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
            return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

        # The gradient belongs into the branch: that of a branch keeps what it needs in all steps.
        of_step = with_trailing_channels(jax.value_and_grad(penalty))
        return jax.lax.cond(state.step % self.r1_every == 0, of_step, nothing, state.params[DISCRIMINATOR])

    def _judge(self, state: TrainState, variables: PyTree, images: Array) -> tuple[Array, dict[str, PyTree]]:
        """Logits of images, and the other variables after their statistics were taken."""
        return self._judged(state.frozen.get(DISCRIMINATOR, {}), variables, images)

    @one_program  # as a step has up to four of it
    def _judged(self, frozen: PyTree, variables: PyTree, images: Array) -> tuple[Array, dict[str, PyTree]]:
        kept = {name: value for name, value in variables.items() if name == _LOGIT_MEANS}
        others = {name: value for name, value in variables.items() if name not in ("params", _LOGIT_MEANS)}
        inputs = {"params": variables["params"], **others, **frozen}
        logits, after = self.discriminator.apply(inputs, images, train=True, mutable=list(others))
        return logits, after | kept


class _GeneratorStep(NamedTuple):
    gradient: PyTree
    variables: dict[str, PyTree]
    reconstruction: Array
    metrics: Metrics


def _quantize(model: VQVAE, images: Array) -> QuantizerOutput:
    return model.quantizer(model.latents(images, train=True), train=True)


def _to_images(model: VQVAE, images: Array) -> tuple[QuantizerOutput, Array]:
    output = _quantize(model, images)
    return output, model.decode_latents(output.quantized, train=True)


def _to_features(model: VQVAE, images: Array) -> tuple[QuantizerOutput, Array]:
    output = _quantize(model, images)
    return output, model.decode_features(output.quantized, train=True)
