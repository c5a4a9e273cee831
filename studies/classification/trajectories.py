"""Descents on Himmelblau's function with the remedies of vqtorch, beside those of the rotation trick."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from studies.choosing.himmelblau import Setting, himmelblau, start
from studies.common.records import Run
from vqjax import GradientCodebook, VectorQuantizer

Points = Float[Array, "points 2"]
Codes = Float[Array, "codes 2"]

# A code with an average number of points goes an eighth of the way to their mean in a step.
_CODEBOOK_RATE = 2.0
_SYNC_NU = 0.2
_CODEBOOK_STEPS = 4
SETTING = Setting(snapshot_every=4)


class Variant(NamedTuple):
    """What the codes and the points get in a step.

    Attributes:
      estimator: Name of the estimator of the gradient that reaches the points.
      sync_nu: Share of that gradient which the codes get.
      codebook_steps: Steps of the codes alone before each step, in the place of one with it.
    """

    estimator: str
    sync_nu: float = 0.0
    codebook_steps: int = 0


VARIANTS = {
    "straight-through": Variant("straight_through"),
    "synchronized": Variant("straight_through", sync_nu=_SYNC_NU),
    "alternating": Variant("straight_through", codebook_steps=_CODEBOOK_STEPS),
    "both": Variant("straight_through", _SYNC_NU, _CODEBOOK_STEPS),
    "rotation": Variant("rotation"),
    "rotation, both": Variant("rotation", _SYNC_NU, _CODEBOOK_STEPS),
    "tangential rotation": Variant("tangential_rotation"),
    "tangential rotation, both": Variant("tangential_rotation", _SYNC_NU, _CODEBOOK_STEPS),
}
"""By the name of a row: both are alternating and synchronized steps."""


def descent_runs() -> list[Run]:
    """List the descents, one for each of ``VARIANTS``, each from the same random starts."""
    return [
        Run(f"descents/{name}", {"variant": name, "steps": SETTING.steps, "seeds": SETTING.seeds}) for name in VARIANTS
    ]


def measure_descent(variant: Variant, setting: Setting = SETTING) -> dict[str, Any]:
    """Descend from the start of every seed.

    Args:
      variant: What is tried.
      setting: Settings of the descents.

    Returns:
      One number per seed: ``value_at_points`` and ``value_at_codes`` (means over the points, at the end),
      ``quantization_error`` (mean squared distance of a point to its code, per dimension), and ``delay`` (the same at
      the lookups, mean over all steps). For the first seed also ``points`` and ``codes``, the positions every
      ``snapshot_every`` steps.
    """
    alternating = variant.codebook_steps > 0
    quantizer = VectorQuantizer(
        num_codes=setting.num_codes,
        estimator=variant.estimator,
        codebook=GradientCodebook(weight=0.0 if alternating else 1.0, sync_nu=variant.sync_nu),
    )

    def objective(codes: Codes, points: Points) -> tuple[Float[Array, ""], Float[Array, ""]]:
        out = quantizer.apply({"params": {"codes": codes}}, points, train=False)
        loss = setting.learning_rate * jnp.sum(himmelblau(out.quantized)) + _CODEBOOK_RATE * out.loss
        return loss, out.metrics["quantization_error"]

    def codebook_loss(codes: Codes, points: Points) -> Float[Array, ""]:
        return _CODEBOOK_RATE * quantizer.apply({"params": {"codes": codes}}, points, method="codebook_loss")

    def step(
        position: tuple[Points, Codes], _: None
    ) -> tuple[tuple[Points, Codes], tuple[Points, Codes, Float[Array, ""]]]:
        points, codes = position
        for _ in range(variant.codebook_steps):
            codes -= jax.grad(codebook_loss)(codes, points)
        (of_codes, of_points), error = jax.grad(objective, argnums=(0, 1), has_aux=True)(codes, points)
        points, codes = points - of_points, codes - of_codes
        return (points, codes), (points, codes, error)

    def descend(seed: Int[Array, ""]) -> dict[str, Array]:
        first = start(seed, setting)
        begin = (first.points, first.codebook.codes)
        (points, codes), (path, path_of_codes, errors) = jax.lax.scan(step, begin, None, length=setting.steps)
        found = quantizer.apply({"params": {"codes": codes}}, points, train=False)
        return {
            "value_at_points": jnp.mean(himmelblau(points)),
            "value_at_codes": jnp.mean(himmelblau(found.quantized)),
            "quantization_error": found.metrics["quantization_error"],
            "delay": jnp.mean(errors),
            "points": jnp.concatenate([begin[0][None], path]),
            "codes": jnp.concatenate([begin[1][None], path_of_codes]),
        }

    measured = jax.jit(jax.vmap(descend))(jnp.arange(setting.seeds))
    return measured | {name: measured[name][0, :: setting.snapshot_every] for name in ("points", "codes")}
