"""Adversarial losses of generator and discriminator, their balance and their regularizers."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "..."]
Images = Float[Array, "batch height width channels"]
Scalar = Float[Array, ""]


class AdversarialLoss(NamedTuple):
    """A pair of losses.

    Attributes:
      discriminator: Loss of the discriminator from its logits of real and of generated images.
      generator: Loss of the generator from the discriminator's logits of its images.
    """

    discriminator: Callable[[Logits, Logits], Scalar]
    generator: Callable[[Logits], Scalar]


def hinge_loss(real: Logits, fake: Logits) -> Scalar:
    r"""Compute :math:`\frac12 E[\max(0, 1 - D(x))] + \frac12 E[\max(0, 1 + D(\hat x))]`.

    Args:
      real: Logits of real images.
      fake: Logits of generated images.

    Returns:
      The discriminator's loss.

    Example:
      >>> float(hinge_loss(jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])))
      0.375

    Source: Lim and Ye, 2017 (arXiv 1705.02894).
    """
    return (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake))) / 2


def vanilla_loss(real: Logits, fake: Logits) -> Scalar:
    r"""Compute :math:`-\frac12 E[\log \sigma(D(x))] - \frac12 E[\log(1 - \sigma(D(\hat x)))]`.

    Args:
      real: Logits of real images.
      fake: Logits of generated images.

    Returns:
      The discriminator's loss.

    Example:
      >>> round(float(vanilla_loss(jnp.zeros(3), jnp.zeros(3))), 4)
      0.6931

    Source: Goodfellow et al., 2014 (arXiv 1406.2661).
    """
    return (jnp.mean(nn.softplus(-real)) + jnp.mean(nn.softplus(fake))) / 2


def least_squares_loss(real: Logits, fake: Logits) -> Scalar:
    r"""Compute :math:`\frac12 E[(D(x) - 1)^2] + \frac12 E[D(\hat x)^2]`.

    Args:
      real: Outputs for real images.
      fake: Outputs for generated images.

    Returns:
      The discriminator's loss.

    Example:
      >>> float(least_squares_loss(jnp.array([1.0]), jnp.array([2.0])))
      2.0

    Source: Mao et al., 2017 (arXiv 1611.04076).
    """
    return (jnp.mean(jnp.square(real - 1)) + jnp.mean(jnp.square(fake))) / 2


def _wasserstein(fake: Logits) -> Scalar:
    return -jnp.mean(fake)


def _non_saturating(fake: Logits) -> Scalar:
    return jnp.mean(nn.softplus(-fake))


def _least_squares_generator(fake: Logits) -> Scalar:
    return jnp.mean(jnp.square(fake - 1)) / 2


ADVERSARIAL_LOSSES = {
    "hinge": AdversarialLoss(hinge_loss, _wasserstein),
    "vanilla": AdversarialLoss(vanilla_loss, _wasserstein),
    "non_saturating": AdversarialLoss(vanilla_loss, _non_saturating),
    "least_squares": AdversarialLoss(least_squares_loss, _least_squares_generator),
}
"""Pairs of losses by name. ``hinge`` and ``vanilla`` are those of taming-transformers, whose generator raises the mean
logit in both."""

AdversarialName = Literal["hinge", "vanilla", "non_saturating", "least_squares"]


def adaptive_weight(
    of_reconstruction: Float[Array, "..."], of_adversarial: Float[Array, "..."], *, largest: float = 1e4
) -> Scalar:
    r"""Return the weight at which both losses move the generator's last layer equally far.

    .. math:: \lambda = \min\left(\frac{|\nabla_W L_{rec}|}{|\nabla_W L_{adv}| + 10^{-4}},\ \lambda_{max}\right)

    Args:
      of_reconstruction: Gradient of the reconstruction losses with respect to the weights of the last layer.
      of_adversarial: Gradient of the generator's adversarial loss with respect to them.
      largest: :math:`\lambda_{max}`.

    Returns:
      :math:`\lambda`, without a gradient.

    Example:
      >>> round(float(adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 0.5]))), 3)
      9.998

    Source: Esser et al., 2021 (arXiv 2012.09841), eq. 7; the constant as in their code.
    """
    norms = [jnp.linalg.norm(x.astype(jnp.float32).ravel()) for x in (of_reconstruction, of_adversarial)]
    return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, largest))


def r1_penalty(discriminate: Callable[[Images], Logits], images: Images) -> Scalar:
    r"""Compute :math:`E\,|\nabla_x \sum D(x)|^2` of real images.

    The discriminator must judge each image by itself: with statistics of the batch, the gradient of one image's logit
    would reach the others.

    Args:
      discriminate: Maps images to logits.
      images: Real images.

    Returns:
      The penalty; its usual weight is :math:`\gamma/2` with :math:`\gamma = 10`.

    Example:
      >>> images = jnp.ones((2, 2, 2, 1))
      >>> float(r1_penalty(lambda x: 3 * x.sum(axis=(1, 2, 3)), images))
      36.0

    Source: Mescheder et al., 2018 (arXiv 1801.04406).
    """
    gradient = jax.grad(lambda images: jnp.sum(discriminate(images).astype(jnp.float32)))(images)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32))) / len(images)


def lecam_penalty(real: Logits, fake: Logits, mean_real: Scalar, mean_fake: Scalar) -> Scalar:
    r"""Compute :math:`E[\max(0, D(x) - \bar D_{fake})^2] + E[\max(0, \bar D_{real} - D(\hat x))^2]`.

    Args:
      real: Logits of real images.
      fake: Logits of generated images.
      mean_real: Moving average of the mean logit of real images.
      mean_fake: Moving average of the mean logit of generated images.

    Returns:
      The penalty.

    Example:
      >>> float(lecam_penalty(jnp.array([1.0]), jnp.array([-1.0]), jnp.array(0.5), jnp.array(-0.5)))
      4.5

    Source: Tseng et al., 2021 (arXiv 2104.03310).
    """
    return jnp.mean(jnp.square(nn.relu(real - mean_fake))) + jnp.mean(jnp.square(nn.relu(mean_real - fake)))
