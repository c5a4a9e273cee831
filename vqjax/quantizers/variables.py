"""The variables of a ``VectorQuantizer``: made once in ``init``, read and written by name."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.codebook import Codebook, fresh_codebook
from vqjax.errors import UserError
from vqjax.norms import normalize
from vqjax.quantizers.ema import EMA
from vqjax.quantizers.projection import create_projections


def ema_settings(vq: nn.Module) -> EMA | None:
    """The settings of the moving averages; None where the codes are not moving averages."""
    if isinstance(vq.codebook_update, EMA):
        return vq.codebook_update
    return EMA() if vq.codebook_update == "ema" else None


def per_codebook(vq: nn.Module, function: Callable) -> Callable:
    """Maps a function of one codebook over the codebooks of the heads, where each head has its own."""
    return jax.vmap(function) if vq.separate_codebooks else function


def create_variables(vq: nn.Module, features: int) -> None:
    """Creates projection and codebook, in ``init`` or where the codebook is missing.

    Args:
      vq: A ``VectorQuantizer`` inside its compact method.
      features: Of the input.
    """
    if vq.code_dim is not None:
        create_projections(vq, features, vq.heads * vq.code_dim)
    shape = (vq.num_codes, code_features(vq, features))
    heads = (vq.heads,) if vq.separate_codebooks else ()

    def initial_codes(key: Array) -> Float[Array, "*heads codes dim"]:
        if not heads:
            return vq.codebook_init(key, shape, jnp.float32)
        return jax.vmap(lambda key: vq.codebook_init(key, shape, jnp.float32))(jax.random.split(key, vq.heads))

    if vq.codebook_update == "gradient":
        vq.param("codes", initial_codes)
        vq.variable("codebook", "offsets", jnp.zeros, (*heads, *shape), jnp.float32)
        vq.variable("codebook", "usage", jnp.ones, (*heads, vq.num_codes), jnp.float32)
    elif not vq.has_variable("codebook", "codes"):
        codes = initial_codes(vq.make_rng("quantizer"))
        start = getattr(ema_settings(vq), "start", "empty")
        fresh = per_codebook(vq, partial(fresh_codebook, start=start))(
            normalize(codes) if vq.metric == "cosine" else codes
        )
        for name in ["codes"] if vq.codebook_update == "none" else fresh._fields:
            vq.variable("codebook", name, getattr(fresh, name).copy)
    if vq.replace_unused_after is not None:
        vq.variable("codebook", "idle", jnp.zeros, (*heads, vq.num_codes), jnp.int32)
    if ema_settings(vq) is not None and ema_settings(vq).accumulation_steps > 1:
        vq.variable("codebook", "pending_counts", jnp.zeros, (*heads, vq.num_codes), jnp.float32)
        vq.variable("codebook", "pending_sums", jnp.zeros, (*heads, *shape), jnp.float32)
        vq.variable("codebook", "pending_batches", jnp.zeros, heads, jnp.int32)


def code_features(vq: nn.Module, features: int) -> int:
    """The dimension of a code for an input of so many features."""
    if vq.code_dim is not None:
        return vq.code_dim
    if features % vq.heads:
        raise UserError(f"heads={vq.heads} is not allowed: z has {features} features. Use a divisor, or set code_dim.")
    return features // vq.heads


def check_features(vq: nn.Module, features: int) -> None:
    """Refuses an input that the stored codebook was not made for."""
    stored = stored_codes(vq).shape
    expected = (vq.num_codes, code_features(vq, features))
    expected = (vq.heads, *expected) if vq.separate_codebooks else expected
    kernel = vq.get_variable("params", "project_in_kernel") if vq.code_dim is not None else None
    if stored != expected or (kernel is not None and kernel.shape[0] != features):
        made_for = kernel.shape[0] if kernel is not None else stored[-1] * vq.heads
        raise UserError(
            f"z has {features} features and num_codes={vq.num_codes}, but the codebook in the variables has shape "
            f"{stored}: pass z of {made_for} features, or initialize anew."
        )


def stored_codes(vq: nn.Module) -> Float[Array, "*heads codes dim"]:
    """The codes before any transform and normalization."""
    missing = [name for collection, name in _needed(vq) if not vq.has_variable(collection, name)]
    if missing:
        what = "codebook" if {"codes", "offsets"} & {*missing} else " and no ".join(missing)
        raise UserError(
            f"The variables hold no {what}: create them with "
            "init(key, z) of a quantizer with these settings, and pass all collections on to apply, not params alone."
        )
    if vq.codebook_update == "gradient":
        codes = vq.get_variable("params", "codes") + vq.get_variable("codebook", "offsets")
    else:
        codes = vq.get_variable("codebook", "codes")
    expected = (vq.heads, vq.num_codes) if vq.separate_codebooks else (vq.num_codes,)
    if codes.shape[:-1] != expected:
        raise UserError(
            f"num_codes={vq.num_codes} with {'a codebook per head' if vq.separate_codebooks else 'one codebook'}, but "
            f"the codebook in the variables has shape {codes.shape}: use the settings it was made with, or initialize "
            "anew."
        )
    return codes


def _needed(vq: nn.Module) -> list[tuple[str, str]]:
    """Collections and names of the variables that the settings ask for."""
    if ema_settings(vq) is not None:
        needed = [("codebook", name) for name in Codebook._fields]
        if ema_settings(vq).accumulation_steps > 1:
            needed.append(("codebook", "pending_counts"))
    elif vq.codebook_update == "gradient":
        needed = [("params", "codes"), ("codebook", "offsets"), ("codebook", "usage")]
    else:
        needed = [("codebook", "codes")]
    return needed if vq.replace_unused_after is None else [*needed, ("codebook", "idle")]
