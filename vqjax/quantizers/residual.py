"""Residual quantization with any quantizer as the stage: each stage quantizes the residual of the stages before it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from vqjax.errors import UserError
from vqjax.estimators import chooses_codes, get_estimator, keyword_names, straight_through
from vqjax.functional.beam_search import beam_search
from vqjax.functional.metrics import geometry_statistics
from vqjax.functional.numbers import Number, is_zero, to_scalar
from vqjax.functional.scalar import soft_clamp
from vqjax.quantizers.base import (
    Features,
    Indices,
    Mask,
    Quantizer,
    QuantizerOutput,
    Scalar,
    Vectors,
    combine_metrics,
    int32_indices,
    usage_by_part,
    zero_where_masked,
)
from vqjax.quantizers.codebooks import GradientCodebook
from vqjax.quantizers.transforms import ImplicitCodebook, takes_condition
from vqjax.quantizers.validation import (
    check_flags,
    is_count,
    require,
    require_choice,
    require_count,
    require_positive,
    require_probability,
)
from vqjax.quantizers.vector import VectorQuantizer

Depths = Int[Array, " examples"]


def draw_depths(
    key: Key[Array, ""],
    num_examples: int,
    num_stages: int,
    *,
    probability: Number,
    min_stages: int = 1,
    multiple: int = 1,
) -> Depths:
    """Draw the number of stages that each example keeps.

    With the given probability, an example keeps a number of stages drawn uniformly from ``[min_stages, num_stages]``,
    rounded up to a multiple of ``multiple`` (but at most ``num_stages``); otherwise it keeps all.

    Args:
      key: Random key.
      num_examples: Number of examples in the batch.
      num_stages: Number of stages.
      probability: Probability of dropping stages, in [0, 1].
      min_stages: Number of stages that are always kept.
      multiple: Granularity of the depths, such as 4 if bit rates change in steps of four stages.

    Returns:
      int32 depths in ``[min_stages, num_stages]``.

    Example:
      >>> import jax
      >>> draw_depths(jax.random.key(0), 3, num_stages=8, probability=0.0).tolist()
      [8, 8, 8]

    Source: Zeghidour et al., 2021 (arXiv 2107.03312), Section III-C; the probability is that of Kumar et al., 2023
    (arXiv 2306.06546), Section 3.3.
    """
    coin_key, depth_key = jax.random.split(key)
    depths = jax.random.randint(depth_key, (num_examples,), min_stages, num_stages + 1, jnp.int32)
    depths = jnp.minimum(-(-depths // multiple) * multiple, num_stages)
    drops = jax.random.bernoulli(coin_key, to_scalar(probability), (num_examples,))
    return jnp.where(drops, depths, num_stages).astype(jnp.int32)


class StagedQuantizer(Quantizer):
    """Base class of quantizers made of stages, each of which quantizes what the earlier stages left over.

    A subclass has the fields ``quantizer`` (the template: the quantizer that every stage is a copy of), ``gradient``,
    ``shared_codebook`` and ``dropout``. With ``gradient="total"`` the estimator is applied once, from the sum of the
    codes to the input, so that the gradient does not grow with the number of stages.
    """

    fits_residual = False

    @property
    def axis_name(self) -> str | None:
        """The ``axis_name`` of ``quantizer``."""
        return self.quantizer.axis_name

    @property
    def differs_in_training(self) -> bool:
        """True if stages differ in training, or are dropped."""
        return self.quantizer.differs_in_training or self.dropout is not None

    def _check_stages(self, per_stage: str) -> None:
        """Check the options of stages, and refuse quantizers that do not support ``gradient="total"``."""
        check_flags(self)
        self._check_template()
        require_choice("gradient", self.gradient, ("total", per_stage))
        require_probability("dropout", self.dropout)
        estimator, codebook_dim = self.quantizer.estimator, getattr(self.quantizer, "codebook_dim", None)
        alone = not (self.shared_codebook and chooses_codes(get_estimator(estimator)))
        advice = "a shared codebook is updated with the codes of all stages; use shared_codebook=False"
        require(alone, "quantizer.estimator", estimator, "one that does not choose the codes", advice)
        if self.gradient == per_stage:
            return
        names, advice = keyword_names(get_estimator(estimator)), f"or use gradient={per_stage!r}"
        expected = "one that does not need the codebook if gradient='total'"
        require(not names & {"codes", "indices", "num_codes"}, "quantizer.estimator", estimator, expected, advice)
        around = getattr(self.quantizer, "differentiate_norm", True)
        expected_norm = "True if gradient='total', whose gradient crosses all stages at once and no norm within them"
        require(around, "quantizer.differentiate_norm", around, expected_norm, advice)
        expected = "None if gradient='total', because projections inside a stage would get no gradient"
        advice = f"{advice}, or project around all stages by the codebook_dim of {type(self).__name__}"
        require(codebook_dim is None, "quantizer.codebook_dim", codebook_dim, expected, advice)

    def _draw_depths(self, num_examples: int, num_stages: int, min_stages: int, multiple: int = 1) -> Depths:
        settings = {"probability": self.dropout, "min_stages": min_stages, "multiple": multiple}
        return draw_depths(self._draw_key(f"dropout={self.dropout}"), num_examples, num_stages, **settings)

    def _apply_estimator(self, x: Vectors, codes: Vectors, mask: Mask, train: bool) -> Vectors:
        """Return the sum of the codes with the gradient of the template's estimator, noisy in training only."""
        estimator = get_estimator(self.quantizer.estimator)
        settings = {"mask": mask, "axis_name": self._batch_axis}
        if "key" in keyword_names(estimator):
            if train:
                settings["key"] = self._draw_key(f"quantizer.estimator={self.quantizer.estimator!r}")
            else:
                estimator = straight_through
        names = keyword_names(estimator)
        return estimator(x, codes, **{name: value for name, value in settings.items() if name in names})

    def _stage_metrics(
        self, x: Vectors, total: Vectors, mask: Mask, outputs: list[QuantizerOutput]
    ) -> dict[str, Scalar]:
        """Return errors and geometry of the sum, error and use of codes of each stage, and the others combined."""
        metrics = [output.metrics for output in outputs]
        combined = combine_metrics(metrics)
        if self.shared_codebook and "dead_codes" in combined:
            # Those of one codebook, whichever stage counts them.
            combined["dead_codes"] = metrics[0]["dead_codes"]
            metrics = [{name: value for name, value in each.items() if name != "dead_codes"} for each in metrics]
        each = {f"quantization_error_{i}": stage["quantization_error"] for i, stage in enumerate(metrics)}
        return (
            combined
            | each
            | usage_by_part(metrics)
            | self._errors(x, total, mask)
            | geometry_statistics(x, total, mask, self._batch_axis)
        )


def keep_stage(stage: int, depths: Depths | None, mask: Mask, shape: tuple) -> Mask:
    """Return the mask of the tokens that reach a stage; leading axes are ``shape``, of which the first is examples."""
    if depths is None:
        return mask
    kept = jnp.broadcast_to(per_token(depths, shape) > stage, shape)
    return kept if mask is None else mask & kept


def per_token(depths: Depths, shape: tuple) -> Int[Array, "*batch"]:
    """Return the depth of every token, for tokens with leading axes ``shape``."""
    return jnp.broadcast_to(depths.reshape(-1, *[1] * (len(shape) - 1)), shape) if shape else depths[0]


class Residual(StagedQuantizer):
    r"""Residual quantizer: the first code approximates the vector, each later code the remaining residual.

    .. math:: r_1 = z,\quad q_i = Q_i(r_i),\quad r_{i+1} = r_i - \mathrm{sg}(q_i),\quad q = \sum_i q_i

    :math:`Q` stages of :math:`K` codes cost :math:`Q \log_2 K` bits per vector and can represent :math:`K^Q` different
    vectors. The loss is the sum of the stages' losses, each for its own residual. Stages of :class:`FSQ` and
    :class:`LFQ` have progressively finer grids (:meth:`Quantizer.at_stage`); an input with a different number of
    features is projected to theirs before the first stage and back after the last.

    Variables:
      Those of ``quantizer``, once per stage, under ``stages_0``, ``stages_1`` and so on; projections in ``params``.

    Attributes:
      quantizer: Template of the stages: the quantizer that every stage is a copy of, with all its options, its
        estimator included. Its output must approximate its input.
      num_quantizers: Number of stages.
      gradient: ``"total"``: the estimator is applied once, from the sum of the codes to the input, and the gradient
        does not grow with the number of stages; norms and bounds within a stage are not differentiated.
        ``"per_stage"``: it is applied in every stage (SoundStream, DAC, vector-quantize-pytorch), which multiplies
        straight-through gradients by that number.
      stage_sizes: Number of codes of each stage, if not that of ``quantizer``.
      codebook_dim: Number of features to project to before the first stage; the result is projected back after the
        last. (The ``codebook_dim`` of ``quantizer`` projects within each stage, as DAC does.)
      shared_codebook: All stages use one codebook, updated once per batch with the tokens of all stages.
      implicit_codebooks: Network that adapts every codebook except the first to the reconstruction of the previous
        stages (QINCo); requires a quantizer whose codes are learned by gradient.
      beam_size: Beam width of a search over the stages during training; with 1 each stage greedily takes the nearest
        code.
      beam_size_eval: The same for evaluation; ``beam_size`` by default.
      soft_clamp: Limit :math:`c`: the input is bounded by :math:`c \tanh(z/c)` once, before the first stage. Stages of
        :class:`FSQ` that clip use their own limits; leave this None with them.
      dropout: Probability with which an example of a training batch (first axis) keeps only its first stages; None
        disables dropout.
      dropout_min_stages: Number of stages that dropout always keeps.
      dropout_multiple: Depths under dropout are rounded up to a multiple of this, at most ``num_quantizers``.

    Raises:
      UserError: Raised by the constructor if an argument is out of range, or is set but would have no effect.

    Example:
      >>> import jax
      >>> from vqjax import FSQ, Residual, VectorQuantizer
      >>> z = jax.random.normal(jax.random.key(0), (2, 16, 4))
      >>> rvq = Residual(VectorQuantizer(num_codes=16), num_quantizers=3)
      >>> variables = rvq.init(jax.random.key(1), z)
      >>> out, updates = rvq.apply(variables, z, train=True, mutable=["codebook"])
      >>> out.quantized.shape, out.indices.shape
      ((2, 16, 4), (2, 16, 3))
      >>> indices = rvq.apply(variables, z, method="encode")
      >>> coarse = rvq.apply(variables, indices[..., :2], method="decode")
      >>> vectors = rvq.apply(variables, indices, method="decode")
      >>> bool((vectors == rvq.apply(variables, z, train=False).quantized).all())
      True
      >>> Residual(FSQ(levels=(5, 5, 5, 5)), num_quantizers=3).apply({}, z).indices.shape
      (2, 16, 3)

    Source: Zeghidour et al., 2021 (arXiv 2107.03312), Algorithm 1; Huijben et al., 2024 (arXiv 2401.14732).
    """

    quantizer: Quantizer
    num_quantizers: int
    gradient: Literal["total", "per_stage"] = "total"
    stage_sizes: Sequence[int] | None = None
    codebook_dim: int | None = None
    shared_codebook: bool = False
    implicit_codebooks: ImplicitCodebook | None = None
    beam_size: int = 1
    beam_size_eval: int | None = None
    soft_clamp: Number | None = None
    dropout: Number | None = None
    dropout_min_stages: int = 1
    dropout_multiple: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        template = self.quantizer
        fits = isinstance(template, Quantizer) and template.fits_residual
        expected = "a quantizer whose output approximates its input, such as VectorQuantizer(...) or FSQ(...)"
        require(fits, "quantizer", template, expected)
        require_count("num_quantizers", self.num_quantizers)
        self._check_stages("per_stage")
        require_count("dropout_min_stages", self.dropout_min_stages, largest=self.num_quantizers)
        require_count("dropout_multiple", self.dropout_multiple, largest=self.num_quantizers)
        if self.dropout is None:
            advice = "nothing is dropped without dropout"
            require(self.dropout_min_stages == 1, "dropout_min_stages", self.dropout_min_stages, "1", advice)
            require(self.dropout_multiple == 1, "dropout_multiple", self.dropout_multiple, "1", advice)
        self._check_features()
        self._check_codebooks()
        # Building a stage checks its options; the first stage differs from the others if codebooks are implicit.
        for stage in {0, self.num_quantizers - 1} if self.stage_sizes is None else range(self.num_quantizers):
            self._make_stage(stage)

    def _check_features(self) -> None:
        if self.codebook_dim is not None:
            require_count("codebook_dim", self.codebook_dim)
            features = self.quantizer.code_features
            advice = f"codes of {type(self.quantizer).__name__} have {features} features"
            require(features is None, "codebook_dim", self.codebook_dim, "None", advice)
        if self.soft_clamp is not None:
            require_positive("soft_clamp", self.soft_clamp)
            advice = "stages that clip already limit their input; leave soft_clamp out, or use hard_clamp=False"
            require(self.quantizer.residual_limits is None, "soft_clamp", self.soft_clamp, "None", advice)

    def _check_codebooks(self) -> None:
        """Refuse options that only a VectorQuantizer supports, and options that exclude each other."""
        template, kind = self.quantizer, type(self.quantizer).__name__
        off = {"stage_sizes": None, "shared_codebook": False, "implicit_codebooks": None, "beam_size": 1}
        for name, value in (off | {"beam_size_eval": None}).items():
            known = isinstance(template, VectorQuantizer) or getattr(self, name) == value
            require(known, name, getattr(self, name), repr(value), f"{kind} does not support it; use a VectorQuantizer")
        if self.stage_sizes is not None:
            sizes, expected = self.stage_sizes, f"{self.num_quantizers} positive integers, one per stage"
            each = isinstance(sizes, Sequence) and all(is_count(size) for size in sizes)
            require(each and len(sizes) == self.num_quantizers, "stage_sizes", sizes, expected)
            advice = "a shared codebook has the num_codes of the quantizer"
            require(not self.shared_codebook, "stage_sizes", self.stage_sizes, "None", advice)
            # A module has to be hashable, and lists come from configs.
            object.__setattr__(self, "stage_sizes", tuple(self.stage_sizes))
        implicit = self.implicit_codebooks
        if implicit is not None:
            require(takes_condition(implicit), "implicit_codebooks", implicit, "ImplicitCodebook(...) or None")
            learned = isinstance(template.codebook, GradientCodebook) and template.codebook.transform is None
            expected = "learned by gradient (codebook='gradient') and without its own transform, for implicit_codebooks"
            require(learned, "quantizer.codebook", template.codebook, expected)
            advice = "each stage has its own implicit codebook"
            require(not self.shared_codebook, "shared_codebook", True, "False", advice)
        require_count("beam_size", self.beam_size)
        if self.beam_size_eval is not None:
            require_count("beam_size_eval", self.beam_size_eval)
        if max(self.beam_size, self.beam_size_eval or 1) == 1:
            return
        require(template.heads == 1, "quantizer.heads", template.heads, "1 with a beam search")
        chooses = "a beam search chooses the codes"
        temperature, estimator = template.sampling_temperature, template.estimator
        expected = "one that does not choose the codes itself"
        require(temperature is None, "quantizer.sampling_temperature", temperature, "None", chooses)
        require(not chooses_codes(get_estimator(estimator)), "quantizer.estimator", estimator, expected, chooses)

    def setup(self) -> None:
        count = 1 if self.shared_codebook else self.num_quantizers
        self.stages = [self._make_stage(stage) for stage in range(count)]

    @property
    def differs_in_training(self) -> bool:
        """True if stages differ in training, are dropped, or are searched with a different beam width."""
        return super().differs_in_training or self.beam_size_eval not in (None, self.beam_size)

    @property
    def num_codes(self) -> int:
        """The number of codes per stage; the largest if stages differ."""
        return self.quantizer.num_codes if self.stage_sizes is None else max(self.stage_sizes)

    @property
    def index_shape(self) -> tuple[int, ...]:
        """The index shape of a stage, followed by an axis of stages."""
        return (*self.quantizer.index_shape, self.num_quantizers)

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks for which usage is counted, one per index of a vector, or 1 if shared."""
        return 1 if self.shared_codebook and not self.quantizer.index_shape else super().num_codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of codes of each codebook for which usage is counted, which is each stage for each index of it."""
        if self.stage_sizes is None:
            return super().codebook_sizes
        return self.stage_sizes * math.prod(self.quantizer.index_shape)

    @property
    def code_features(self) -> int | None:
        """The number of features of the codes if it is fixed."""
        return self.quantizer.code_features or self.codebook_dim

    @nn.compact
    def __call__(
        self, z: Vectors, mask: Mask = None, train: bool | None = None, condition: Vectors | None = None
    ) -> QuantizerOutput:
        """Quantize vectors.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype. With dropout, the first axis must
            index examples.
          mask: True for valid tokens. The others take no part in losses, statistics or sampling, receive no
            gradient, and come back as zero vectors with index -1.
          train: Update the codebooks after the lookup, and apply dropout if configured; as for ``quantizer``.
          condition: Must be None: the codes do not depend on an external condition.

        Returns:
          The sum of the codes, int32 indices ``[..., num_quantizers]`` (-1 in dropped stages), the sum of the stages'
          losses, and these metrics:

          * ``quantization_error``, ``relative_error``, ``norm_ratio``, ``angle``, ``rms_latents`` and ``rms_codes`` of
            the sum;
          * ``quantization_error_0`` and so on: the error of each stage at its input;
          * ``perplexity_0``, ``usage_0`` and so on, and ``dead_codes_0`` and so on if each stage has a codebook;
          * ``dead_codes``: the total of the stages;
          * of a shared codebook, ``perplexity``, ``usage`` and ``dead_codes`` for the tokens of all stages together;
          * the mean over stages of all other metrics.

        Raises:
          UserError: ``condition`` is not None, ``z`` or ``mask`` has the wrong dtype or shape, or a stage raises it.
        """
        self._check_input(z, mask, condition)
        train = self._is_training(train)
        if self.is_initializing():
            self._create_projections(z.shape[-1], self.code_features or z.shape[-1])
        x, batch = self._to_code_space(zero_where_masked(z, mask)), z.shape[:-1]
        depths = None
        if train and self.dropout is not None:
            examples = batch[0] if batch else 1
            depths = self._draw_depths(examples, self.num_quantizers, self.dropout_min_stages, self.dropout_multiple)
        token_depths = None if depths is None else per_token(depths, batch)
        chosen = self._search(x, token_depths, train, self.num_quantizers)
        above, quantized, residuals, masks, outputs = jnp.zeros_like(x), jnp.zeros_like(x), [], [], []
        for stage in range(self.num_quantizers):
            residuals.append(x - above)
            masks.append(keep_stage(stage, depths, mask, batch))
            indices = None if chosen is None else chosen[..., stage]
            outputs.append(self._quantize_stage(stage, residuals[-1], masks[-1], indices, above, train))
            quantized += outputs[-1].quantized
            above += jax.lax.stop_gradient(outputs[-1].quantized)
        indices = jnp.stack([output.indices for output in outputs], axis=-1)
        metrics = self._stage_metrics(x, above, mask, outputs)
        if self.shared_codebook and not self.is_initializing():
            metrics |= self._assign_to_shared_codebook(residuals, indices, masks, train)
        if self.gradient == "total":
            quantized = self._cross(x, quantized, mask, train)
        quantized = zero_where_masked(self._project_out(quantized).astype(z.dtype), mask)
        loss = sum(output.loss for output in outputs)
        return QuantizerOutput(quantized, indices, loss, jax.lax.stop_gradient(metrics))

    def encode(self, z: Vectors, mask: Mask = None, *, num_quantizers: int | None = None) -> Indices:
        """Return the indices of all stages, or of the first few: a lower bit rate.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.
          num_quantizers: Number of stages; all by default. A beam search then minimizes what these stages leave.

        Returns:
          int32 indices along a new last axis of stages, coarsest first; ``decode`` takes any number of them.

        Raises:
          UserError: There are not so many stages.
        """
        self._check_input(z, mask)
        if num_quantizers is not None:
            require_count("num_quantizers", num_quantizers, largest=self.num_quantizers)
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        x = self._to_code_space(zero_where_masked(z, mask))
        indices = self._search(x, None, train=False, num_stages=count)
        if indices is None:
            above, by_stage = jnp.zeros_like(x), []
            for stage in range(count):
                by_stage.append(self._quantizer_at(stage).encode(x - above, **self._condition(stage, above)))
                above += self._decode_stage(stage, by_stage[-1], above)
            indices = jnp.stack(by_stage, axis=-1)
        return self._mask_indices(indices, mask)

    def decode(self, indices: Integer[Array | np.ndarray, "*indices"]) -> Vectors:
        """Return the vectors of indices: ``decode(encode(z))`` equals ``quantized`` in float32.

        Args:
          indices: Indices of any integer dtype, stages along the last axis; fewer than ``num_quantizers`` give a
            coarser vector. A stage with index -1 contributes nothing; a token whose indices are all -1 decodes to
            zero; any other index out of range gives NaN.

        Returns:
          Vectors in float32.

        Raises:
          UserError: The last axis has no stages, or more than there are.
        """
        indices = int32_indices(indices, self.num_codes)
        if indices.ndim < 1 or not 1 <= indices.shape[-1] <= self.num_quantizers:
            raise UserError(
                f"indices must have 1 to {self.num_quantizers} stages along the last axis, got shape "
                f"{indices.shape}; pass them as encode returns them."
            )
        total = self._decode_stage(0, indices[..., 0], None)
        for stage in range(1, indices.shape[-1]):
            total = total + self._decode_stage(stage, indices[..., stage], total)
        own_axes = tuple(range(-len(self.index_shape), 0))
        return zero_where_masked(self._project_out(total), jnp.any(indices != -1, axis=own_axes))

    def code_vectors(self) -> tuple[Any, ...]:
        """Return the codes of each stage, as its own ``code_vectors`` does."""
        advice = "the codes of a stage depend on those before it; decode the indices whose vectors you need"
        require(self.implicit_codebooks is None, "implicit_codebooks", self.implicit_codebooks, "None", advice)
        return tuple(self._quantizer_at(stage).code_vectors() for stage in range(self.num_quantizers))

    def kmeans_init(
        self, z: Vectors, mask: Mask = None, *, iterations: int = 10, start: Literal["random", "plus_plus"] = "random"
    ) -> None:
        """Initialize every codebook by k-means on the residuals of the previous stages.

        Args:
          z: As in :meth:`VectorQuantizer.kmeans_init`, which shows how to call it; a shared codebook is initialized
            from the tokens of the first stage.
          mask: True for valid tokens.
          iterations: Number of iterations of Lloyd's algorithm.
          start: Initial cluster centers: random tokens, or those of k-means++.
        """
        x = self._to_code_space(z)
        for quantizer in self.stages:
            quantizer.kmeans_init(x, mask, iterations=iterations, start=start)
            x = x - quantizer.decode(quantizer.encode(x))

    def _make_stage(self, stage: int) -> Quantizer:
        options = {}
        if self.stage_sizes is not None:
            options["num_codes"] = self.stage_sizes[stage]
        if self.implicit_codebooks is not None and stage > 0:
            options["codebook"] = dataclasses.replace(self.quantizer.codebook, transform=self.implicit_codebooks)
        quantizer = self.quantizer.at_stage(stage).clone(name=None, **options)
        return quantizer.without_estimator() if self.gradient == "total" else quantizer

    def _quantizer_at(self, stage: int) -> Quantizer:
        return self.stages[0 if self.shared_codebook else stage]

    def _condition(self, stage: int, above: Vectors | None) -> dict[str, Vectors]:
        """Return the keyword argument that conditions implicit codebooks: the sum of the earlier stages' codes."""
        return {} if self.implicit_codebooks is None or stage == 0 else {"condition": above}

    def _to_code_space(self, z: Vectors) -> Features:
        """Return the input of the first stage, in float32."""
        x = self._project_in(z, self.code_features)
        limits = self.quantizer.residual_limits if self.soft_clamp is None else [self.soft_clamp] * x.shape[-1]
        return x if limits is None else soft_clamp(x, limits)

    def _quantize_stage(
        self, stage: int, residual: Vectors, mask: Mask, indices: Indices | None, above: Vectors, train: bool
    ) -> QuantizerOutput:
        quantizer, condition = self._quantizer_at(stage), self._condition(stage, above)
        if self.is_initializing() or (indices is None and not self.shared_codebook):
            return quantizer(residual, mask, train, **condition)
        return quantizer.assign(residual, indices, mask, train, **condition, update=not self.shared_codebook)

    def _decode_stage(self, stage: int, indices: Indices, above: Vectors | None) -> Vectors:
        return self._quantizer_at(stage).decode(indices, **self._condition(stage, above))

    def _cross(self, x: Vectors, codes: Vectors, mask: Mask, train: bool) -> Vectors:
        """Return the sum of the codes with its gradient to the input and, if ``sync_nu`` > 0, to the codes."""
        crossed, weight = self._apply_estimator(x, codes, mask, train), self.quantizer.sync_nu
        # The second term is zero, so the value is that of the first bit for bit; it carries a gradient to the codes.
        return crossed + weight * (codes - jax.lax.stop_gradient(codes)) if not is_zero(weight) else crossed

    def _assign_to_shared_codebook(
        self, residuals: list[Vectors], indices: Indices, masks: list[Mask], train: bool
    ) -> dict[str, Scalar]:
        """Update the codebook in training, and measure it, with the tokens of all stages."""
        mask = None if masks[0] is None else jnp.stack(masks)
        out = self.stages[0].assign(jnp.stack(residuals), jnp.moveaxis(indices, -1, 0), mask, train=train)
        return {name: out.metrics[name] for name in ("dead_codes", "perplexity", "usage") if name in out.metrics}

    def _search(self, x: Vectors, depths: Int[Array, "*batch"] | None, train: bool, num_stages: int) -> Indices | None:
        """Choose the indices of the first stages by beam search if ``beam_size`` > 1; otherwise return None."""
        size = self.beam_size if train or self.beam_size_eval is None else self.beam_size_eval
        if size == 1 or self.is_initializing():
            return None

        def candidates(stage: int, residuals: Vectors, sums: Vectors, count: int) -> Indices:
            quantizer = self._quantizer_at(stage)
            return quantizer.encode(residuals, **self._condition(stage, sums), top_k=min(count, quantizer.num_codes))  # pyright: ignore[reportCallIssue]

        def codes(stage: int, indices: Indices, sums: Vectors) -> Float[Array, "*indices dim"]:
            above = jnp.broadcast_to(sums[..., None, :], (*indices.shape, sums.shape[-1]))
            return self._decode_stage(stage, indices, above)

        return beam_search(x, num_stages, size, candidates, codes, depths)


ResidualVQ = Residual
