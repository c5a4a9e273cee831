"""What ``train=True`` does to the variables of a ``VectorQuantizer`` after the lookup."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.codebook import Assignment, Codebook, assign, fresh_codebook
from vqjax.errors import UserError
from vqjax.kmeans import kmeans
from vqjax.quantizers.devices import mapped_axis
from vqjax.quantizers.masking import flatten
from vqjax.quantizers.state import read_state, write_state
from vqjax.quantizers.update import Candidates, Rule, update_state
from vqjax.quantizers.variables import ema_settings, per_codebook, stored_codes
from vqjax.replacement import dead_codes

Vectors = Float[Array, "*tokens dim"]
Mask = Bool[Array, "*tokens"] | None
Groups = tuple[Float[Array, "*codebooks tokens dim"], Bool[Array, "*codebooks tokens"] | None]


def learn(
    vq: nn.Module,
    vectors: Vectors,
    indices: Int[Array, "*tokens"],
    counts: Float[Array, "*codebooks codes"],
    mask: Mask,
    weights: Array | None,
) -> dict[str, Float[Array, ""]]:
    """Updates the state by one batch.

    Args:
      vq: A ``VectorQuantizer``.
      vectors: Tokens in the space of the lookup.
      indices: Their codes.
      counts: Tokens of each code, which devices then do not add up twice.
      mask: True for the tokens that count.
      weights: Weight of each code's moving averages.

    Returns:
      ``dead_codes``, the number after this batch and before any replacement; nothing for a frozen codebook.
    """
    transform, metrics = vq.codebook_transform, {}
    running = hasattr(transform, "update")
    if vq.codebook_update != "none" or running:
        require_mutable(vq, "train=True")
    tokens, token_mask = per_group(vq, jax.lax.stop_gradient(vectors), mask)
    if running:
        # Before the moving averages: tokens of the first batch would enter them as if nothing were transformed.
        transform.update(jax.lax.stop_gradient(stored_codes(vq)), tokens, token_mask, mapped_axis(vq))
    if vq.codebook_update != "none":
        # Moving averages live among the stored codes, learned codes are replaced where they are looked up.
        in_base = transform.to_base(tokens) if running and ema_settings(vq) is not None else tokens
        batch = assigned(vq, in_base, indices, token_mask)._replace(counts=counts)
        before = read_state(vq)
        after, dead = _updated(vq, before, batch, in_base, token_mask, weights)
        write_state(vq, before, after)
        metrics["dead_codes"] = jnp.sum(dead)
    return metrics


def start_from_clusters(vq: nn.Module, vectors: Vectors, mask: Mask, iterations: int, start: str) -> None:
    """Makes clusters of tokens the codes.

    Args:
      vq: A ``VectorQuantizer``.
      vectors: Tokens in the space of the lookup.
      mask: True for the tokens that take part.
      iterations: Of Lloyd's algorithm.
      start: How the first means are chosen, see :func:`vqjax.kmeans.kmeans`.
    """
    tokens, token_mask = all_tokens(vq, *per_group(vq, jax.lax.stop_gradient(vectors), mask))
    settings = {"iterations": iterations, "unit_norm": vq.metric == "cosine", "start": start}

    def cluster(key: Array, tokens: Array, mask: Array | None) -> Codebook:
        return kmeans(key, tokens, vq.num_codes, mask=mask, **settings)

    clusters = per_codebook(vq, cluster)(draw_keys(vq, "kmeans_init"), tokens, token_mask)
    if vq.codebook_transform is not None and vq.codebook_update != "gradient":
        clusters = per_codebook(vq, fresh_codebook)(vq.codebook_transform.to_base(clusters.codes))
    before = read_state(vq)
    write_state(vq, before, before._replace(codebook=clusters))


def count_dead(vq: nn.Module) -> Float[Array, ""]:
    """The number of codes whose use is below the threshold."""
    usage = vq.get_variable("codebook", "usage")
    return jnp.sum(dead_codes(usage.reshape(-1), vq.dead_code_threshold), dtype=jnp.float32)


def assigned(vq: nn.Module, tokens: Array, indices: Int[Array, "*tokens"], mask: Array | None) -> Assignment:
    """Counts and sums of the global batch, per codebook."""
    if vq.separate_codebooks:
        indices = jnp.moveaxis(indices, -1, 0).reshape(vq.heads, -1)
        masks = None if mask is None else 0
        batch = jax.vmap(lambda z, i, m: assign(z, i, vq.num_codes, m), in_axes=(0, 0, masks))(tokens, indices, mask)
    else:
        batch = assign(tokens, indices.reshape(-1), vq.num_codes, mask)
    axis_name = mapped_axis(vq)
    return batch if axis_name is None else jax.lax.psum(batch, axis_name)


def per_group(vq: nn.Module, vectors: Vectors, mask: Mask) -> Groups:
    """Tokens in one axis, after an axis of heads where each head has its own codebook."""
    if not vq.separate_codebooks:
        return flatten(vectors, mask)
    tokens = jnp.moveaxis(vectors, -2, 0).reshape(vq.heads, -1, vectors.shape[-1])
    return tokens, None if mask is None else jnp.moveaxis(mask, -1, 0).reshape(vq.heads, -1)


def all_tokens(vq: nn.Module, tokens: Array, mask: Array | None) -> Groups:
    """The tokens of all devices, and which of them may become codes."""
    if vq.metric == "cosine":
        # A zero token has no direction. As a code it would win every token more than 60 degrees from the others.
        directed = jnp.any(tokens != 0, axis=-1)
        mask = directed if mask is None else mask & directed
    if vq.axis_name is None:
        return tokens, mask
    axis = 1 if vq.separate_codebooks else 0
    # "invarying" tells shard_map that every device holds the same result, which it cannot infer.
    gather = lambda x: jax.lax.all_gather(x, vq.axis_name, axis=axis, tiled=True, to="invarying")  # noqa: E731
    return jax.tree.map(gather, (tokens, mask))


def rule_of(vq: nn.Module) -> Rule:
    """How a batch changes the state of this quantizer."""
    return Rule(
        ema=ema_settings(vq),
        decay=vq.decay,
        unit_norm=vq.metric == "cosine",
        dead_code_threshold=vq.dead_code_threshold,
        replace_dead_codes=vq.replace_dead_codes,
        replace_unused_after=vq.replace_unused_after,
    )


def require_mutable(vq: nn.Module, what: str) -> None:
    """Refuses to update an immutable collection."""
    if not vq.is_mutable_collection("codebook"):
        raise UserError(
            f"{what} updates the collection 'codebook', which is immutable in this apply. Write\n"
            "  out, updates = vq.apply(variables, z, train=True, mutable=['codebook'])\n"
            "  variables = variables | updates\n"
            "or pass train=False to leave the codebook as it is."
        )


def draw_keys(vq: nn.Module, what: str) -> Array:
    """A key of the stream ``quantizer``, or one per codebook."""
    if not vq.has_rng("quantizer"):
        raise UserError(f"{what} draws random tokens or numbers: pass rngs={{'quantizer': key}} to apply.")
    key = vq.make_rng("quantizer")
    return jax.random.split(key, vq.heads) if vq.separate_codebooks else key


def _updated(vq: nn.Module, state, batch: Assignment, tokens: Array, mask: Array | None, weights: Array | None):
    rule = rule_of(vq)
    candidates = None
    if rule.replaces:
        cause = "replace_dead_codes=True" if vq.replace_dead_codes else "replace_unused_after"
        tokens, mask = all_tokens(vq, jax.lax.stop_gradient(tokens), mask)
        candidates = Candidates(draw_keys(vq, cause), tokens, mask)
    if weights is not None and vq.separate_codebooks:
        weights = jnp.broadcast_to(weights, (vq.heads, vq.num_codes))
    return per_codebook(vq, lambda *arguments: update_state(rule, *arguments))(state, batch, candidates, weights)
