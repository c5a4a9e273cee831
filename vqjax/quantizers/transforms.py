"""Codebook transforms: modules that map the stored codes to the codes that are looked up.

Any ``flax.linen`` module that maps ``[..., codes, dim]`` to the same shape can be the ``transform`` of a codebook.
Four optional members are found by name:

* a second parameter ``condition`` of the call: every token has its own codebook (:class:`ImplicitCodebook`);
* a method ``to_base``, the inverse map, which k-means and dead-code replacement need;
* a method ``update``, called in training after the lookup (:class:`RunningAffine`);
* an attribute ``starts_at_zero``, true if all codes are zero at first, which unit length does not allow
  (:class:`VQBridge`).
"""

import inspect
import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vqjax.errors import UserError
from vqjax.functional.affine import FeatureStatistics, feature_statistics, match_statistics, update_statistics
from vqjax.functional.numbers import Number
from vqjax.quantizers.boxes import read, write
from vqjax.quantizers.validation import is_fraction, require, require_count, require_positive, use_python_numbers

Codes = Float[Array, "*batch codes dim"]
Latents = Float[Array, "*batch tokens dim"]


class LinearTransform(nn.Module):
    r"""SimVQ: one linear layer over all codes, so that every batch updates every code.

    .. math:: e_k' = W e_k

    With ``FrozenCodebook(transform=LinearTransform())``, the codebook of :class:`SimVQ`, fixed random codes lie in a
    learned basis.

    Example:
      >>> import jax
      >>> from vqjax import FrozenCodebook, VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook=FrozenCodebook(transform=LinearTransform()))
      >>> variables = vq.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (64, 4)))
      >>> variables["params"]["codebook_transform"]["linear"]["kernel"].shape  # the only parameters
      (4, 4)

    Source: Zhu et al., 2024 (arXiv 2411.02038).
    """

    @nn.compact
    def __call__(self, codes: Codes) -> Codes:
        """Transform codes."""
        return nn.Dense(codes.shape[-1], use_bias=False, precision=jax.lax.Precision.HIGHEST, name="linear")(codes)


class VQBridge(nn.Module):
    r"""FVQ: a small vision transformer over the codebook, so that every batch updates every code.

    The codes are read as an image with ``dim`` channels and cut into patches of ``patch_size`` x ``patch_size`` codes.
    A linear layer makes each patch one token; the tokens pass through ``depth`` blocks of attention and a two-layer
    network, without positions; a last linear layer makes each token a patch of codes again. FVQ needs a square number
    of codes. Without positions only the patches matter, so the image here has the sides closest to each other that
    ``patch_size`` divides: FVQ's square where there is one, and 16 x 32 for 512 codes in patches of 4 x 4.

    The last layer starts at zero and there is no skip around the bridge, as in FVQ, so that all codes are zero at
    first. The first tokens then choose code 0, which moves the codes at its place in all patches; tokens closer to the
    origin than to these move the next place, and so on. What follows from that:

    * Latents around the origin use all places after a few steps. With an offset that is large beside their spread, all
      of them stay with the first place: the codes of the others stay zero, without a gradient. With an offset of three
      times the spread, a small training used 16 of 256 codes with ``patch_size=4`` and 64 with 2, and without offset
      all 256. Center such latents, for example by a batch norm at the end of the encoder.
    * Estimators that scale the gradient by :math:`|q|/|z|`, such as ``"rotation"``, pass almost none to the encoder
      as long as codes are close to zero. None divides by the length of a code: where it is zero and no angle is
      defined, they are straight-through.
    * ``distance="cosine"`` is refused, because a code of zero has no direction and no gradient.

    Train it with ``GradientCodebook(transform=VQBridge())``, as FVQ does, or over frozen random codes with
    ``FrozenCodebook(transform=VQBridge())``. FVQ's codes start with ``codebook_init="inverse_size"``. After training,
    :meth:`VectorQuantizer.without_transform` stores the output as a plain codebook.

    Attributes:
      patch_size: Side of a patch; its square must divide ``num_codes``. FVQ has 4 for 16,384 codes, and 8 for 65,536
        and 262,144.
      depth: Number of transformer blocks.
      heads: Heads of the attention; must divide ``width``.
      width: Features of a token; the two-layer networks have twice as many inside.

    Raises:
      UserError: A size is out of range, or does not fit the number of codes, then with those that do.

    Example:
      >>> import jax
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> bridge = VQBridge(patch_size=2, heads=2, width=8)
      >>> vq = VectorQuantizer(num_codes=16, codebook=GradientCodebook(transform=bridge), estimator="straight_through")
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> variables = vq.init(jax.random.key(1), z)
      >>> float(abs(vq.apply(variables, method="code_vectors")).max())  # the last layer starts at zero
      0.0

    Source: Chang et al., 2025 (arXiv 2509.10140); the sizes are those of the authors' VQBridge-L (yfChang-cv/FVQ).
    """

    starts_at_zero: ClassVar[bool] = True

    patch_size: int = 4
    depth: int = 2
    heads: int = 4
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "depth", "heads", "width"):
            require_count(name, getattr(self, name))
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width={self.width}")

    @nn.compact
    def __call__(self, codes: Codes) -> Codes:
        """Transform codes."""
        rows, columns = self._patches(codes.shape[-2])
        side, dim, batch = self.patch_size, codes.shape[-1], codes.shape[:-2]
        image = codes.reshape(*batch, rows, side, columns, side, dim)
        x = jnp.swapaxes(image, -4, -3).reshape(*batch, rows * columns, side * side * dim)
        x = _dense(self.width, "to_tokens")(x)
        for block in range(self.depth):
            x = _BridgeBlock(self.heads, name=f"block_{block}")(x)
        x = nn.Dense(
            side * side * dim, kernel_init=nn.initializers.zeros, precision=jax.lax.Precision.HIGHEST, name="to_codes"
        )(_norm("norm")(x))
        image = jnp.swapaxes(x.reshape(*batch, rows, columns, side, side, dim), -4, -3)
        return image.reshape(codes.shape)

    def _patches(self, num_codes: int) -> tuple[int, int]:
        """Return the rows and columns of patches, as close to a square as their number allows."""
        fitting = [size for size in range(1, math.isqrt(num_codes) + 1) if num_codes % size**2 == 0]
        expected = f"a number whose square divides num_codes={num_codes}"
        sizes = f"use {' or '.join(map(str, fitting))}, or a num_codes that is a multiple of {self.patch_size**2}"
        require(self.patch_size in fitting, "patch_size", self.patch_size, expected, sizes)
        patches = num_codes // self.patch_size**2
        rows = max(rows for rows in range(1, math.isqrt(patches) + 1) if patches % rows == 0)
        return rows, patches // rows


class _BridgeBlock(nn.Module):
    """Attention, then a two-layer network, each behind a norm and added to its input."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch patches width"]) -> Float[Array, "*batch patches width"]:
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            # Xavier's for query, key and value as one layer, as in FVQ.
            kernel_init=nn.initializers.variance_scaling(0.5, "fan_in", "uniform"),
            out_kernel_init=nn.initializers.xavier_uniform(),
            precision=jax.lax.Precision.HIGHEST,
            deterministic=True,
            name="attention",
        )
        x = x + attention(_norm("norm_1")(x))
        hidden = nn.gelu(_dense(2 * x.shape[-1], "mlp_1")(_norm("norm_2")(x)))
        return x + _dense(x.shape[-1], "mlp_2")(hidden)


def _dense(features: int, name: str) -> nn.Dense:
    precision = jax.lax.Precision.HIGHEST
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), precision=precision, name=name)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-6, use_bias=False, use_scale=False, use_fast_variance=False, name=name)


class LearnedAffine(nn.Module):
    r"""Affine re-parameterization with a learned scale and shift that all codes of a group share.

    .. math:: e_k' = (1 + \eta\, s_g) \odot e_k + \eta\, b_g

    Codes that receive no gradient themselves still follow the others.

    Attributes:
      learning_rate_scale: :math:`\eta`, the factor by which scale and shift learn faster than the codes.
      groups: Number of contiguous groups of codes; must divide ``num_codes``.

    Example:
      >>> import jax
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> vq = VectorQuantizer(num_codes=16, codebook=GradientCodebook(transform=LearnedAffine(10.0)))
      >>> variables = vq.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (64, 4)))
      >>> print(variables["params"]["codebook_transform"]["scale"])  # all codes share one scale, at first 1 + 10 * 0
      [[0. 0. 0. 0.]]

    Source: Huh et al., ICML 2023 ("Straightening out the straight-through estimator"), Section 4.1.
    """

    learning_rate_scale: Number = 1.0
    groups: int = 1

    def __post_init__(self) -> None:
        use_python_numbers(self)
        super().__post_init__()
        require_positive("learning_rate_scale", self.learning_rate_scale)
        require_count("groups", self.groups)

    @nn.compact
    def __call__(self, codes: Codes) -> Codes:
        """Transform codes."""
        self._check_groups(codes.shape[-2])
        shape = (self.groups, codes.shape[-1])
        self.param("scale", nn.initializers.zeros, shape, jnp.float32)
        self.param("shift", nn.initializers.zeros, shape, jnp.float32)
        scale, shift = self._per_code(codes)
        return codes * scale + shift

    def to_base(self, codes: Codes) -> Codes:
        """Return the stored codes that are transformed to these."""
        self._check_groups(codes.shape[-2])
        scale, shift = self._per_code(codes)
        # A scale that has become zero has no inverse; such a feature starts at zero.
        return jnp.where(scale == 0, 0.0, (codes - shift) / jnp.where(scale == 0, 1.0, scale))

    def _per_code(self, codes: Codes) -> tuple[Array, Array]:
        """Return scale and shift of every code."""

        def spread(values: Float[Array, "groups dim"]) -> Codes:
            rows = jnp.repeat(values, codes.shape[-2] // self.groups, axis=0)
            return jnp.broadcast_to(rows, codes.shape)

        scale = 1 + self.learning_rate_scale * read(self, "params", "scale")
        return spread(scale), spread(self.learning_rate_scale * read(self, "params", "shift"))

    def _check_groups(self, num_codes: int) -> None:
        require(num_codes % self.groups == 0, "groups", self.groups, f"a divisor of num_codes={num_codes}")


class RunningAffine(nn.Module):
    r"""Affine re-parameterization that gives the codes the running mean and variance of the latents.

    .. math:: e_k' = (e_k - \mu_e)\,\sigma_z/\sigma_e + \mu_z

    When the encoder's distribution drifts, the whole codebook drifts with it. The first batch sets the statistics,
    the following ones update them, always after the lookup.

    Attributes:
      token_decay: Decay of the moving averages of the latents' mean and variance, in [0, 1).
      code_decay: Decay of those of the stored codes, in [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from vqjax import EMACodebook, VectorQuantizer
      >>> z = 100 + jax.random.normal(jax.random.key(0), (64, 4))
      >>> vq = VectorQuantizer(num_codes=16, codebook=EMACodebook(transform=RunningAffine()))
      >>> out, updates = vq.apply(vq.init(jax.random.key(1), z), z, train=True, mutable=["codebook"])
      >>> statistics = updates["codebook"]["codebook_transform"]
      >>> bool(jnp.allclose(statistics["token_mean"], z.mean(axis=0)))  # the codes are moved to the latents' mean
      True

    Source: Huh et al., ICML 2023; the decays are those of vector-quantize-pytorch.
    """

    token_decay: Number = 0.99
    code_decay: Number = 0.9

    def __post_init__(self) -> None:
        use_python_numbers(self)
        super().__post_init__()
        for name in ("token_decay", "code_decay"):
            value = getattr(self, name)
            require(is_fraction(value), name, value, "a number in [0, 1)")

    @nn.compact
    def __call__(self, codes: Codes) -> Codes:
        """Transform codes."""
        if self.is_initializing():
            shape = (*codes.shape[:-2], codes.shape[-1])
            for name in ("token", "code"):
                self.variable("codebook", f"{name}_mean", jnp.zeros, shape, jnp.float32)
                self.variable("codebook", f"{name}_variance", jnp.ones, shape, jnp.float32)
            self.variable("codebook", "batches", jnp.zeros, (), jnp.int32)
        return self._match(codes, "code", "token")

    def to_base(self, codes: Codes) -> Codes:
        """Return the stored codes, or latents in their space, that are transformed to these."""
        return self._match(codes, "token", "code")

    def update(
        self, codes: Codes, latents: Latents, mask: Bool[Array, "*batch tokens"] | None, axis_name: str | None
    ) -> None:
        """Update the statistics with one batch; one without a latent that counts changes nothing.

        Args:
          codes: Stored codes.
          latents: Latents of the batch, with the leading axes of ``codes``.
          mask: True for the latents that count.
          axis_name: Mapped axis over which the batch is split.
        """
        counted = jnp.sum(jnp.ones(latents.shape[:-1], bool) if mask is None else mask, dtype=jnp.int32)
        counted = (counted if axis_name is None else jax.lax.psum(counted, axis_name)) > 0
        batches = read(self, "codebook", "batches")
        for name, decay, new in (
            ("token", self.token_decay, _statistics_of(latents, mask, axis_name)),
            ("code", self.code_decay, _statistics_of(codes, None, None)),
        ):
            old = self._statistics(name)
            moved = update_statistics(old, new, decay)
            for field, before, after, first in zip(FeatureStatistics._fields, old, moved, new, strict=True):
                value = jnp.where(counted, jnp.where(batches > 0, after, first), before)
                write(self, "codebook", f"{name}_{field}", jax.lax.stop_gradient(value))
        write(self, "codebook", "batches", jnp.where(counted, batches + 1, batches))

    def _statistics(self, name: str) -> FeatureStatistics:
        fields = [read(self, "codebook", f"{name}_{field}") for field in FeatureStatistics._fields]
        if any(field is None for field in fields):
            raise UserError(
                f"The variables must hold {name}_mean and {name}_variance of RunningAffine, got none; pass all "
                "collections of init(key, z) to apply."
            )
        return FeatureStatistics(*fields)

    def _match(self, x: Codes, source: str, target: str) -> Codes:
        match = jax.vmap(match_statistics) if x.ndim == 3 else match_statistics
        return match(x, self._statistics(source), self._statistics(target))


class ImplicitCodebook(nn.Module):
    """QINCo: a network that adapts every code to what has been decoded so far, so each token has its own codebook.

    Pass what has been decoded so far as ``condition``, one vector per token, to ``__call__``, ``encode`` and
    ``decode``. The lookup holds ``tokens x num_codes x hidden`` numbers.

    Attributes:
      depth: Number of residual blocks.
      hidden: Width inside a block.

    Example:
      >>> import jax
      >>> from vqjax import GradientCodebook, VectorQuantizer
      >>> z, condition = jax.random.normal(jax.random.key(0), (2, 8, 4))
      >>> vq = VectorQuantizer(num_codes=16, codebook=GradientCodebook(transform=ImplicitCodebook()))
      >>> variables = vq.init(jax.random.key(1), z, condition=condition)
      >>> vq.apply(variables, z, train=False, condition=condition).indices.shape
      (8,)

    Source: Huijben et al., ICML 2024 (arXiv 2401.14732).
    """

    depth: int = 4
    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "hidden"):
            require_count(name, getattr(self, name))

    @nn.compact
    def __call__(
        self, codes: Float[Array, "*codebooks codes dim"], condition: Float[Array, "*tokens features"]
    ) -> Float[Array, "*tokens codes dim"]:
        """Transform codes, or one code per token with an axis of size one for the codes."""
        dim = codes.shape[-1]
        shape = (*condition.shape[:-1], codes.shape[-2])
        codes = jnp.broadcast_to(codes, (*shape, dim))
        condition = jnp.broadcast_to(jnp.expand_dims(condition, -2), (*shape, condition.shape[-1]))
        codes = nn.Dense(dim, name="joined")(jnp.concatenate([codes, condition.astype(jnp.float32)], axis=-1))
        for block in range(self.depth):
            inner = nn.silu(nn.Dense(self.hidden, name=f"widen_{block}")(codes))
            codes = codes + nn.Dense(dim, name=f"narrow_{block}")(inner)
        return codes


def _statistics_of(x: Latents, mask: Bool[Array, "*batch tokens"] | None, axis_name: str | None) -> FeatureStatistics:
    """One mean and variance, or one per codebook if there is a leading axis of codebooks."""
    if x.ndim == 2:
        return feature_statistics(x, mask, axis_name)
    one = partial(feature_statistics, axis_name=axis_name)
    return jax.vmap(one, in_axes=(0, None if mask is None else 0))(x, mask)


def takes_condition(transform: nn.Module | None) -> bool:
    """Return True for a transform that gives each token its own codebook."""
    return isinstance(transform, nn.Module) and "condition" in inspect.signature(type(transform).__call__).parameters


def has_inverse(transform: nn.Module | None) -> bool:
    """Return True for a transform that maps looked-up codes back to stored ones."""
    return hasattr(transform, "to_base")


def is_learned(transform: nn.Module | None) -> bool:
    """Return True for a transform that is trained by gradient, rather than by running statistics."""
    return transform is not None and not hasattr(transform, "update")
