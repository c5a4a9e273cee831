"""A task with two trained networks and a frozen one: the seam that adversarial training needs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vqjax.data import to_model_range
from vqjax.evaluation import tokenizer_metrics
from vqjax.models import VQVAE, SonnetDecoder
from vqjax.models.tokenizer import NETWORK
from vqjax.tasks.registry import TASKS
from vqjax.tasks.state import TrainState
from vqjax.tasks.task import Task

DISCRIMINATOR, FEATURES = "discriminator", "features"


class NormalizedDecoder(nn.Module):
    """A decoder with running statistics and dropout."""

    @nn.compact
    def __call__(self, codes: Array, *, train: bool = False) -> Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(codes))
        return SonnetDecoder(width=8, num_residual_blocks=1)(nn.Dropout(0.1, deterministic=not train)(x))


class Discriminator(nn.Module):
    """Logits of patches, with running statistics of its own."""

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        x = nn.Conv(8, (4, 4), strides=2)(images)
        x = nn.leaky_relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x), 0.2)
        return nn.Conv(1, (4, 4))(x)


@dataclasses.dataclass(frozen=True)
class AdversarialTask(Task):
    """A VQ-VAE against a discriminator, and beside it a fixed random network in the place of a perceptual loss."""

    model: VQVAE
    optimizer: Mapping[str, optax.GradientTransformation]
    loss: Callable[[Array, Array], Array]
    augment: Callable[[Array, Array], Array]
    _: dataclasses.KW_ONLY
    adversarial_weight: float = 0.1
    ema_decay: float | None = None

    @property
    def metrics(self) -> tuple:
        return tokenizer_metrics(self.model.quantizer.num_codes)

    @property
    def networks(self) -> dict[str, nn.Module]:
        model = self.model.clone(decoder=NormalizedDecoder())
        return {NETWORK: model, DISCRIMINATOR: Discriminator(), FEATURES: nn.Conv(4, (3, 3))}

    def init(self, key: Array, batch: dict[str, Array]) -> TrainState:
        images = to_model_range(batch["image"])
        params, variables = {}, {}
        for number, (name, network) in enumerate(self.networks.items()):
            options = {"train": False} if name != FEATURES else {}
            variables[name] = network.init(jax.random.fold_in(key, number), images, **options)
            params[name] = variables[name].pop("params")
        frozen = {FEATURES: params.pop(FEATURES)}
        del variables[FEATURES]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            variables=variables,
            opt_state={name: self.optimizer[name].init(params[name]) for name in params},
            ema_params=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
            frozen=frozen,
        )

    def train_step(self, state: TrainState, batch: dict[str, Array], key: Array) -> tuple[TrainState, dict]:
        augment_key, quantizer_key, dropout_key = jax.random.split(key, 3)
        images = to_model_range(self.augment(augment_key, batch["image"]))
        generator, discriminator, features = self.networks.values()

        def discriminate(params: Any, images: Array) -> tuple[Array, dict]:
            variables = {"params": params, **state.variables[DISCRIMINATOR]}
            return discriminator.apply(variables, images, train=True, mutable=list(state.variables[DISCRIMINATOR]))

        def generator_loss(params: Any) -> tuple[Array, Any]:
            output, variables = generator.apply(
                {"params": params, **state.variables[NETWORK]},
                images,
                train=True,
                mutable=list(state.variables[NETWORK]),
                rngs={"quantizer": quantizer_key, "dropout": dropout_key},
            )
            logits, _ = discriminate(state.params[DISCRIMINATOR], output.reconstruction)
            of_images, of_reconstruction = (
                features.apply({"params": state.frozen[FEATURES]}, x) for x in (images, output.reconstruction)
            )
            perceptual = jnp.mean(jnp.square(of_images - of_reconstruction))
            adversarial = -self.adversarial_weight * jnp.mean(logits)
            loss = self.loss(output.reconstruction, images) + perceptual + adversarial + output.quantizer.loss
            return loss, (output.reconstruction, output.quantizer.metrics, variables)

        def discriminator_loss(params: Any) -> tuple[Array, dict]:
            real, _ = discriminate(params, images)
            fake, variables = discriminate(params, jax.lax.stop_gradient(reconstruction))
            return jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)), variables

        with_gradient = jax.value_and_grad(generator_loss, has_aux=True)
        (loss, (reconstruction, metrics, variables)), gradient = with_gradient(state.params[NETWORK])
        after = state.apply_gradient(NETWORK, gradient, self.optimizer[NETWORK], variables)
        of_discriminator = jax.value_and_grad(discriminator_loss, has_aux=True)
        (hinge, variables), of_hinge = of_discriminator(state.params[DISCRIMINATOR])
        after = after.apply_gradient(DISCRIMINATOR, of_hinge, self.optimizer[DISCRIMINATOR], variables)
        metrics = metrics | {"loss": loss, "discriminator_loss": hinge}
        metrics |= {
            "gradient_norm": optax.tree.norm(gradient),
            "discriminator_gradient_norm": optax.tree.norm(of_hinge),
        }
        return after.finish_step(self.ema_decay), metrics

    def evaluate(self, state: TrainState, batch: dict[str, Array]) -> dict[str, Array]:
        output = self.networks[NETWORK].apply(
            state.evaluated(NETWORK), to_model_range(batch["image"]), batch["valid"], train=False
        )
        return {"reconstruction": output.reconstruction, "indices": output.quantizer.indices}


TASKS["adversarial_in_tests"] = AdversarialTask
