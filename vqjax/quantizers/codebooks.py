"""Codebooks: how the codes of a quantizer are stored and learned.

A codebook object holds options, not arrays. Like those of an optax optimizer, its methods are pure functions of a
state: the quantizer's variables.
"""

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import UserError
from vqjax.functional.codebook import (
    Assignment,
    Codebook,
    dead_codes,
    ema_update,
    init_codebook,
    replace_codes,
    sample_latents,
    unused_codes,
    update_idle,
    update_relative_usage,
)
from vqjax.functional.norms import normalize
from vqjax.functional.numbers import Number, is_traced, is_weight
from vqjax.quantizers.transforms import has_inverse, is_learned, takes_condition
from vqjax.quantizers.validation import is_count, is_fraction, require, use_python_numbers

Codes = Float[Array, "*codebooks codes dim"]
Condition = Float[Array, "*batch features"] | None
Weights = Float[Array, "*codebooks codes"] | None

Variables = dict[str, Array]
"""The arrays of a codebook by name; if each head has its own codebook, every array has a leading axis of heads."""


class Candidates(NamedTuple):
    """Latents that may replace codes.

    Attributes:
      keys: Random key of each codebook.
      latents: Latents to draw from, in the space in which the codebook averages them (see
        :meth:`BaseCodebook.where_averaged`).
      mask: True for the latents that may be drawn; None allows all.
    """

    keys: Key[Array, "*codebooks"]
    latents: Float[Array, "*codebooks tokens dim"]
    mask: Bool[Array, "*codebooks tokens"] | None


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Rule that replaces unused codes with random latents from the batch, after each codebook update.

    The statistics of a replaced code are reset as well. Codebooks replace nothing by default; the recipe of the
    quickstart does. The ``dead_code_threshold`` of a codebook is independent of ``below``: it replaces nothing, but
    decides which codes the metric ``dead_codes`` counts.

    Args:
      below: Replace codes whose moving average of usage is below this fraction of the average (tokens / codes); in
        ``[0, 1)``, or None.
      unused_after: Replace codes that no token has chosen for this number of codebook updates, or None. There is one
        for each training batch, or for ``accumulation_steps`` of them.

    Raises:
      UserError: An argument is out of range, or both are None.

    Example:
      >>> import jax
      >>> from vqjax import EMACodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=16, codebook=EMACodebook(decay=0.0, replace=Replacement(below=0.05)))
      >>> variables = vq.init(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"], rngs={"quantizer": jax.random.key(2)})
      >>> int(out.metrics["dead_codes"]) > 0  # counted before they are replaced
      True
      >>> bool((updates["codebook"]["relative_usage"] > 0).all())  # and none is left
      True
    """

    below: Number | None = 0.01
    unused_after: int | None = None

    def __post_init__(self) -> None:
        use_python_numbers(self)
        require(self.below is None or is_fraction(self.below), "below", self.below, "in [0, 1), or None")
        batches = self.unused_after
        require(batches is None or is_count(batches), "unused_after", batches, "a positive integer, or None")
        either = self.below is not None or self.unused_after is not None
        require(either, "below", None, "a number if unused_after is None", "use replace=None to replace no code")


class BaseCodebook(abc.ABC):
    """Base of the codebooks.

    A subclass is a frozen dataclass with the field ``transform``, and names its variables in ``variable_names``.

    Attributes:
      in_params: Whether the codes are parameters, updated by the optimizer; otherwise they are in the collection
        ``codebook``.
      tracks_usage: Whether training tracks code usage.
      clusters_in: The collection that k-means writes to.
      decay: Decay of the moving averages; 0 in codebooks that have none.
      dead_code_threshold: The metric ``dead_codes`` counts codes whose usage is below this fraction of the average.
      weight: Weight of the codebook loss.
      sync_nu: Weight with which the gradient of the task reaches the codes.
      replace: Rule for replacing unused codes; None replaces none.
      transform: Maps stored codes to those that are looked up.
    """

    # What holds in a subclass without the field of this name, such as no decay; not the defaults of the fields.
    in_params: ClassVar[bool] = False
    clusters_in: ClassVar[str] = "codebook"
    tracks_usage: ClassVar[bool] = True
    weight: ClassVar[float] = 0.0
    sync_nu: ClassVar[float] = 0.0
    dead_code_threshold: ClassVar[float] = 0.0
    decay: ClassVar[float] = 0.0
    replace: ClassVar[Replacement | None] = None
    transform: ClassVar[nn.Module | None] = None

    def __post_init__(self) -> None:
        use_python_numbers(self)
        transform, replace = self.transform, self.replace
        known = transform is None or isinstance(transform, nn.Module)
        require(known, "transform", transform, "a Flax module, or None", "pass an instance such as LinearTransform()")
        require(is_fraction(self.decay), "decay", self.decay, "a number in [0, 1)", "use, for example, 0.99")
        threshold = self.dead_code_threshold
        require(is_fraction(threshold), "dead_code_threshold", threshold, "a fraction of the average use, in [0, 1)")
        require(is_weight(self.weight), "weight", self.weight, "a finite number of at least 0")
        require(is_weight(self.sync_nu), "sync_nu", self.sync_nu, "a finite number of at least 0")
        known = replace is None or isinstance(replace, Replacement)
        require(known, "replace", replace, "a Replacement(...), or None")
        if replace is not None:
            require(
                transform is None or has_inverse(transform),
                "transform",
                transform,
                "invertible (have a method to_base) if codes are replaced",
                "use replace=None, or a different transform",
            )

    @property
    def is_learned(self) -> bool:
        """True if the codes that are looked up are trained by gradient, either directly or through the transform."""
        return self.in_params or is_learned(self.transform)

    @property
    def changes_in_training(self) -> bool:
        """True if training writes to the collection ``codebook``."""
        return self.tracks_usage or hasattr(self.transform, "update")

    @property
    def variable_names(self) -> tuple[str, ...]:
        """The names of the variables, ``codes`` first."""
        idle = ("idle",) if self.replace is not None and self.replace.unused_after is not None else ()
        return ("codes", *idle)

    @property
    def code_names(self) -> tuple[str, ...]:
        """The names of the variables that make the codes."""
        return ("codes",)

    def create(self, codes: Codes, unit_norm: bool) -> Variables:
        """Return the initial variables, given the codes drawn by the initializer."""
        variables = {"codes": normalize(codes) if unit_norm and not self.in_params else codes}
        if "idle" in self.variable_names:
            variables["idle"] = jnp.zeros(codes.shape[:-1], jnp.int32)
        return variables

    def stored(self, variables: Variables) -> Codes:
        """Return the codes before any transform and normalization."""
        return variables["codes"]

    def codes(self, variables: Variables, *, unit_norm: bool, condition: Condition = None) -> Array:
        """Return the codes that are looked up: one codebook, one per head, or, with a condition, one per token."""
        codes = self.stored(variables)
        if self.transform is not None or condition is not None:
            self._check_condition(condition)
            codes = self.transform(codes) if condition is None else self.transform(codes, condition)
        return normalize(codes) if unit_norm and self._may_leave_the_sphere else codes

    def codes_at(
        self, variables: Variables, indices: Int[Array, "*indices"], *, unit_norm: bool, condition: Condition = None
    ) -> Float[Array, "*indices dim"]:
        """Return the codes at indices, which must be in range; codebooks per head are chosen by their last axis."""
        if condition is None:
            return take_codes(self.codes(variables, unit_norm=unit_norm), indices)
        self._check_condition(condition)
        # Compute only the chosen code of each token.
        chosen = jnp.expand_dims(self.stored(variables)[indices], -2)
        chosen = jnp.squeeze(self.transform(chosen, condition), -2)
        return normalize(chosen) if unit_norm else chosen

    def to_stored(self, codes: Codes) -> Codes:
        """Return the stored codes that the transform maps to ``codes``."""
        return self.transform.to_base(codes) if has_inverse(self.transform) else codes

    def where_averaged(self, latents: Float[Array, "*codebooks tokens dim"]) -> Float[Array, "*codebooks tokens dim"]:
        """Map latents to the space in which they are averaged; with moving averages, that of the stored codes."""
        return latents

    def update(
        self,
        variables: Variables,
        batch: Assignment,
        *,
        unit_norm: bool,
        candidates: Candidates | None = None,
        weights: Weights = None,
    ) -> tuple[Variables, Float[Array, ""]]:
        """Update the variables with one batch; called if ``tracks_usage``.

        Args:
          variables: Variables before the batch.
          batch: Counts and sums of the global batch.
          unit_norm: Whether codes have unit length.
          candidates: Latents to replace codes with; given if ``replace`` is set.
          weights: Update weight of each code, in [0, 1]; 0 freezes it.

        Returns:
          The variables after the batch, and the number of dead codes before any was replaced.
        """
        raise NotImplementedError(f"{type(self).__name__} tracks usage and must implement update.")

    @abc.abstractmethod
    def restart(self, variables: Variables, clusters: Codebook) -> Variables:
        """Return the variables with the codes set to the given cluster centers."""

    def count_dead(self, relative_usage: Float[Array, "*codebooks codes"]) -> Float[Array, ""]:
        """Count the codes whose use is below the threshold."""
        return jnp.sum(dead_codes(relative_usage.ravel(), self.dead_code_threshold), dtype=jnp.float32)

    def _track_usage(
        self, variables: Variables, counts: Float[Array, " codes"], weights: Weights
    ) -> tuple[Variables, Bool[Array, " codes"]]:
        """Update the usage statistics of one codebook, and return a mask of the codes to replace."""
        relative_usage = update_relative_usage(variables["relative_usage"], counts, decay=self.decay)
        variables = variables | {"relative_usage": relative_usage}
        if self.replace is None:
            return variables, jnp.zeros_like(relative_usage, bool)
        replaced = jnp.zeros_like(relative_usage, bool)
        if self.replace.below is not None:
            replaced |= dead_codes(relative_usage, self.replace.below)
        if self.replace.unused_after is not None:
            idle = update_idle(variables["idle"], counts)
            replaced |= unused_codes(idle, self.replace.unused_after)
        if weights is not None:
            replaced &= weights > 0
        if self.replace.unused_after is not None:
            variables["idle"] = jnp.where(replaced, 0, idle)
        return variables, replaced

    @property
    def _may_leave_the_sphere(self) -> bool:
        # Moving averages and frozen codes are stored at unit length.
        return self.in_params or self.transform is not None

    def _check_condition(self, condition: Condition) -> None:
        name = "codebook.transform=" + ("None" if self.transform is None else type(self.transform).__name__)
        if condition is None and takes_condition(self.transform):
            raise UserError(f"condition must have one vector per token, because {name} needs it, got None.")
        if condition is not None and not takes_condition(self.transform):
            raise UserError(
                f"condition must be None, because {name} does not take one, got an array of shape {condition.shape}; "
                "leave it out."
            )


@dataclasses.dataclass(frozen=True)
class EMACodebook(BaseCodebook):
    r"""Codes that are moving averages of the latents assigned to them.

    .. math::
      N_k \leftarrow \gamma N_k + (1-\gamma)\, n_k,\quad M_k \leftarrow \gamma M_k + (1-\gamma)\, s_k,\quad
      e_k \leftarrow M_k / N_k

    Variables:
      In the collection ``codebook``: ``codes``, ``counts`` (:math:`N`), ``sums`` (:math:`M`), ``relative_usage``;
      with ``replace.unused_after`` also ``idle``; with ``accumulation_steps > 1`` also ``pending_counts``,
      ``pending_sums`` and ``pending_batches``.

    Args:
      decay: :math:`\gamma` per codebook update, in ``[0, 1)``.
      smoothing: Laplace smoothing of the counts. With 0, a code without tokens keeps its value; above 0, every code
        is rewritten in every batch, and codes that are used no more drift to the origin. Van den Oord et al., 2017, and
        vector-quantize-pytorch smooth, the latter with 1e-5.
      start: Counts and sums before the first batch. ``"empty"``: zeros, so that a code's first batch moves it all
        the way to the mean of its tokens. ``"one_token"``: as if each code had received itself once
        (vector-quantize-pytorch). ``"sums_only"``: sums without counts (the official rotation-trick code).
      accumulation_steps: Number of training calls over which counts and sums are accumulated before each codebook
        update; use it with ``optax.MultiSteps(every_k_schedule=...)``.
      dead_code_threshold: The metric ``dead_codes`` counts the codes whose moving average of usage is below this
        fraction of the average (tokens / codes). It replaces nothing: see ``replace``.
      replace: Rule for replacing unused codes; None (the default) replaces none.
      transform: An invertible transform without parameters, such as :class:`RunningAffine`; with parameters, both the
        gradient and the moving averages would change the codes.

    Raises:
      UserError: An argument is out of range, or the transform has parameters or no inverse.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vqjax import EMACodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=1, codebook=EMACodebook(decay=0.9))
      >>> out, updates = vq.apply(vq.init(jax.random.key(1), z), z, train=True, mutable=["codebook"])
      >>> bool(jnp.allclose(updates["codebook"]["codes"][0], z.mean(axis=0)))  # the mean of the latents assigned to it
      True

    Source: van den Oord et al., 2017 (arXiv 1711.00937), Appendix A.1.
    """

    decay: Number = 0.99
    smoothing: Number = 0.0
    start: Literal["empty", "one_token", "sums_only"] = "empty"
    accumulation_steps: int = 1
    dead_code_threshold: Number = 0.01
    replace: Replacement | None = None
    transform: nn.Module | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing, steps = self.smoothing, self.accumulation_steps
        require(is_weight(smoothing), "smoothing", smoothing, "0, or a small number such as 1e-5")
        starts = ("empty", "one_token", "sums_only")
        require(self.start in starts, "start", self.start, "'empty', 'one_token' or 'sums_only'")
        require(is_count(steps), "accumulation_steps", steps, "a positive integer")
        require(
            not is_learned(self.transform) and (self.transform is None or has_inverse(self.transform)),
            "transform",
            self.transform,
            "invertible and without parameters for an EMA codebook",
            "use FrozenCodebook or GradientCodebook with it",
        )

    @property
    def variable_names(self) -> tuple[str, ...]:
        pending = ("pending_counts", "pending_sums", "pending_batches") if self.accumulation_steps > 1 else ()
        return (*Codebook._fields, *super().variable_names[1:], *pending)

    def create(self, codes: Codes, unit_norm: bool) -> Variables:
        variables = super().create(codes, unit_norm)
        codebook = per_codebook(partial(init_codebook, start=self.start), codes)(variables["codes"])
        variables |= codebook._asdict()
        if self.accumulation_steps > 1:
            pending = {"pending_counts": codebook.counts, "pending_sums": codebook.sums}
            variables |= jax.tree.map(jnp.zeros_like, pending)
            variables["pending_batches"] = jnp.zeros(codes.shape[:-2], jnp.int32)
        return variables

    def where_averaged(self, latents: Float[Array, "*codebooks tokens dim"]) -> Float[Array, "*codebooks tokens dim"]:
        return self.to_stored(latents)

    def update(
        self,
        variables: Variables,
        batch: Assignment,
        *,
        unit_norm: bool,
        candidates: Candidates | None = None,
        weights: Weights = None,
    ) -> tuple[Variables, Float[Array, ""]]:
        move = per_codebook(partial(self._accumulate, unit_norm=unit_norm), variables["codes"])
        variables, dead = move(variables, batch, candidates, weights)
        return variables, jnp.sum(dead)

    def restart(self, variables: Variables, clusters: Codebook) -> Variables:
        if self.transform is not None:
            # Sums of latents are not sums in the space of the stored codes.
            clusters = per_codebook(init_codebook, clusters.codes)(self.to_stored(clusters.codes))
        return variables | clusters._asdict()

    def _accumulate(
        self, variables: Variables, batch: Assignment, candidates: Candidates | None, weights: Weights, unit_norm: bool
    ) -> tuple[Variables, Float[Array, ""]]:
        """Accumulate batches, and update one codebook once ``accumulation_steps`` have been collected."""
        if self.accumulation_steps == 1:
            return self._move(variables, batch, candidates, weights, unit_norm)
        counts, sums = variables["pending_counts"] + batch.counts, variables["pending_sums"] + batch.sums
        pending = {"pending_counts": counts, "pending_sums": sums, "pending_batches": variables["pending_batches"] + 1}
        moved, dead = self._move(variables, Assignment(counts, sums), candidates, weights, unit_norm)
        moved |= jax.tree.map(jnp.zeros_like, pending)
        waiting = variables | pending, self.count_dead(variables["relative_usage"])
        due = pending["pending_batches"] >= self.accumulation_steps
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), (moved, dead), waiting)

    def _move(
        self, variables: Variables, batch: Assignment, candidates: Candidates | None, weights: Weights, unit_norm: bool
    ) -> tuple[Variables, Float[Array, ""]]:
        """Update one codebook with one batch."""
        decay = self.decay if weights is None else 1 - (1 - self.decay) * weights
        codebook = Codebook(*(variables[name] for name in Codebook._fields))
        codebook = ema_update(codebook, batch, decay=decay, unit_norm=unit_norm, smoothing=self.smoothing)
        variables, replaced = self._track_usage(variables, batch.counts, weights)
        codebook = codebook._replace(relative_usage=variables["relative_usage"])
        dead = self.count_dead(codebook.relative_usage)
        if candidates is not None:
            codebook = replace_codes(candidates.keys, codebook, replaced, candidates.latents, candidates.mask)
        return variables | codebook._asdict(), dead


@dataclasses.dataclass(frozen=True)
class GradientCodebook(BaseCodebook):
    r"""Codes that are parameters, trained by the optimizer on the codebook loss.

    .. math:: \alpha\, |\mathrm{sg}(z) - e_k|^2

    Variables:
      ``params["codes"]`` alone. With replacement also the collection ``codebook`` with their ``offsets`` and
      ``relative_usage``, and with ``replace.unused_after`` also ``idle``. The codes are then
      ``params["codes"] + codebook["offsets"]``: the optimizer updates the first; k-means and replacement, which are not
      gradient steps, write the second.

    Args:
      weight: :math:`\alpha`.
      sync_nu: Weight with which the task's gradient also reaches the codes (:math:`\nu` of Huh et al., 2023, eq. 21).
      decay: Decay per batch of the moving average of code usage, in ``[0, 1)``; usage is tracked if codes are replaced.
      dead_code_threshold: The metric ``dead_codes`` (if usage is tracked) counts the codes whose moving average of
        usage is below this fraction of the average (tokens / codes). It replaces nothing: see ``replace``.
      replace: Rule for replacing unused codes; None (the default) replaces none.
      transform: Flax module that maps the stored codes to the codes that are looked up; see
        :mod:`vqjax.quantizers.transforms`.

    Raises:
      UserError: An argument is out of range, or codes cannot be replaced through the transform.

    Example:
      >>> import jax
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=16, codebook=GradientCodebook(weight=0.25), commitment_weight=1.0)
      >>> variables = vq.init(jax.random.key(1), z)
      >>> loss = lambda params: vq.apply(variables | {"params": params}, z, train=False).loss
      >>> bool((jax.grad(loss)(variables["params"])["codes"] != 0).any())  # the codes are parameters
      True

    Source: van den Oord et al., 2017 (arXiv 1711.00937), eq. 3.
    """

    in_params: ClassVar[bool] = True

    weight: Number = 1.0
    sync_nu: Number = 0.0
    decay: Number = 0.99
    dead_code_threshold: Number = 0.01
    replace: Replacement | None = None
    transform: nn.Module | None = None

    @property
    def tracks_usage(self) -> bool:
        return self.replace is not None

    @property
    def clusters_in(self) -> str:
        return "params" if self.replace is None else "codebook"

    @property
    def variable_names(self) -> tuple[str, ...]:
        return (
            super().variable_names
            if self.replace is None
            else (*self.code_names, "relative_usage", *super().variable_names[1:])
        )

    @property
    def code_names(self) -> tuple[str, ...]:
        return ("codes",) if self.replace is None else ("codes", "offsets")

    def create(self, codes: Codes, unit_norm: bool) -> Variables:
        variables = super().create(codes, unit_norm)
        if self.replace is None:
            return variables
        relative_usage = jnp.ones(codes.shape[:-1], jnp.float32)
        return variables | {"offsets": jnp.zeros_like(codes), "relative_usage": relative_usage}

    def stored(self, variables: Variables) -> Codes:
        return variables["codes"] if self.replace is None else variables["codes"] + variables["offsets"]

    def update(
        self,
        variables: Variables,
        batch: Assignment,
        *,
        unit_norm: bool,
        candidates: Candidates | None = None,
        weights: Weights = None,
    ) -> tuple[Variables, Float[Array, ""]]:
        codes = variables["codes"]
        variables, replaced = per_codebook(self._track_usage, codes)(variables, batch.counts, weights)
        dead = self.count_dead(variables["relative_usage"])
        if candidates is not None:
            draw = per_codebook(partial(sample_latents, count=codes.shape[-2]), codes)
            drawn = self.to_stored(draw(candidates.keys, candidates.latents, mask=candidates.mask))
            if candidates.mask is not None:
                replaced &= jnp.any(candidates.mask, axis=-1, keepdims=True)
            offsets = jnp.where(replaced[..., None], drawn - codes, variables["offsets"])
            relative_usage = jnp.where(replaced, 1.0, variables["relative_usage"])
            variables |= {"offsets": offsets, "relative_usage": relative_usage}
        return variables, dead

    def restart(self, variables: Variables, clusters: Codebook) -> Variables:
        codes = self.to_stored(clusters.codes)
        if self.replace is None:
            return variables | {"codes": codes}
        return variables | {"offsets": codes - variables["codes"], "relative_usage": clusters.relative_usage}


@dataclasses.dataclass(frozen=True)
class FrozenCodebook(BaseCodebook):
    """Codes that keep their initial values, random or from k-means.

    With a transform that has parameters, the codes that are looked up are still learned; see :class:`SimVQ`.

    Variables:
      In the collection ``codebook``: ``codes``.

    Args:
      transform: Flax module that maps the stored codes to the codes that are looked up; see
        :mod:`vqjax.quantizers.transforms`.
      weight: Weight of the codebook loss, which trains the parameters of the transform.
      sync_nu: Weight with which the task's gradient also reaches these parameters.

    Raises:
      UserError: An argument is out of range, or a weight is set although there are no parameters.

    Example:
      >>> import jax
      >>> from vqjax import FrozenCodebook, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=16, codebook=FrozenCodebook())
      >>> variables = vq.init(jax.random.key(1), z)
      >>> out, updates = vq.apply(variables, z, train=True, mutable=["codebook"])
      >>> bool((updates["codebook"]["codes"] == variables["codebook"]["codes"]).all())  # training changes nothing
      True
    """

    tracks_usage: ClassVar[bool] = False

    transform: nn.Module | None = None
    weight: Number = 1.0
    sync_nu: Number = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (("weight", 1.0), ("sync_nu", 0.0)):
            value = getattr(self, name)
            effective = self.is_learned or (not is_traced(value) and value == default)
            require(effective, name, value, f"{default} unless the transform has parameters")

    def restart(self, variables: Variables, clusters: Codebook) -> Variables:
        return variables | {"codes": self.to_stored(clusters.codes)}


CODEBOOKS: dict[str, type[BaseCodebook]] = {
    "ema": EMACodebook,
    "gradient": GradientCodebook,
    "frozen": FrozenCodebook,
}
"""The codebooks by name."""


def get_codebook(codebook: str | BaseCodebook) -> BaseCodebook:
    """Return the codebook with the given name and default options; a codebook object is returned unchanged."""
    if isinstance(codebook, BaseCodebook):
        return codebook
    known = isinstance(codebook, str) and codebook in CODEBOOKS
    require(known, "codebook", codebook, "'ema', 'gradient', 'frozen', or a codebook such as EMACodebook(decay=0.9)")
    return CODEBOOKS[codebook]()


def per_codebook(function: Callable, codes: Codes) -> Callable:
    """Map a function of one codebook over the leading axis of codebooks, if there is one."""
    return jax.vmap(function) if codes.ndim == 3 else function


def take_codes(codes: Codes, indices: Int[Array, "*indices"]) -> Float[Array, "*indices dim"]:
    """Return the codes at the indices; with several codebooks, the last axis of ``indices`` selects the codebook."""
    return codes[jnp.arange(codes.shape[0], dtype=jnp.int32), indices] if codes.ndim == 3 else codes[indices]
