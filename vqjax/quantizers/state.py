"""Reading and writing the state of a ``VectorQuantizer``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from vqjax.codebook import Assignment, Codebook, fresh_codebook
from vqjax.quantizers.checks import takes_condition
from vqjax.quantizers.codes import codes_of
from vqjax.quantizers.update import Pending, State
from vqjax.quantizers.variables import per_codebook, stored_codes


def read_state(vq: nn.Module) -> State:
    """The state of the codebook, or codebooks, as :func:`vqjax.quantizers.update.update_state` takes it.

    Learned codes are given as they are looked up.
    """

    def read(name: str) -> Array:
        return vq.get_variable("codebook", name)

    if vq.codebook_update == "gradient":
        # A codebook per token has no codes without a condition, and never replaces any.
        codes = stored_codes(vq) if takes_condition(vq.codebook_transform) else codes_of(vq)
        codes = jax.lax.stop_gradient(codes)
        codebook = per_codebook(vq, fresh_codebook)(codes)._replace(usage=read("usage"))
    elif vq.codebook_update == "none":
        codebook = per_codebook(vq, fresh_codebook)(stored_codes(vq))
    else:
        codebook = Codebook(**{name: read(name) for name in Codebook._fields})
    pending = None
    if vq.has_variable("codebook", "pending_counts"):
        batch = Assignment(counts=read("pending_counts"), sums=read("pending_sums"))
        pending = Pending(batch, read("pending_batches"))
    idle = read("idle") if vq.replace_unused_after is not None else None
    return State(codebook, idle, pending)


def write_state(vq: nn.Module, before: State, after: State) -> None:
    """Stores a state; learned codes stay where they are, and what replaced them goes into the offsets."""
    values = after.codebook._asdict()
    if vq.codebook_update == "gradient":
        moved = jnp.any(after.codebook.codes != before.codebook.codes, axis=-1, keepdims=True)
        codes, learned = after.codebook.codes, vq.get_variable("params", "codes")
        if hasattr(vq.codebook_transform, "to_base"):
            codes = vq.codebook_transform.to_base(codes)
        offsets = jnp.where(moved, codes - learned, vq.get_variable("codebook", "offsets"))
        values = {"offsets": offsets, "usage": after.codebook.usage}
    elif vq.codebook_update == "none":
        values = {"codes": after.codebook.codes}
    if after.idle is not None:
        values["idle"] = after.idle
    if after.pending is not None:
        batch = after.pending.batch
        values |= {"pending_counts": batch.counts, "pending_sums": batch.sums}
        values["pending_batches"] = after.pending.batches
    for name, value in values.items():
        vq.put_variable("codebook", name, jax.lax.stop_gradient(value))
