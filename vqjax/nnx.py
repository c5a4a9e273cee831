"""Quantizers in ``flax.nnx`` models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.bridge.variables import to_nnx_var
from jaxtyping import Array, Bool, Float, Int, Integer

from vqjax.errors import UserError
from vqjax.quantizers.base import QuantizerOutput
from vqjax.quantizers.settings import replace_settings
from vqjax.quantizers.validation import require, require_count, shapes_by_path


@nnx.register_variable_name("codebook")
class CodebookState(nnx.Variable):
    """A variable of the linen collection ``codebook``, which training updates without a gradient.

    Example:
      >>> from vqjax import VectorQuantizer
      >>> vq = Quantizer(VectorQuantizer(num_codes=16), dim=4, rngs=nnx.Rngs(0))
      >>> graphdef, codebook, rest = nnx.split(vq, CodebookState, ...)
      >>> sorted(codebook["variables"]["codebook"])
      ['codes', 'counts', 'relative_usage', 'sums']
    """


class Quantizer(nnx.Module):
    """A quantizer of this package as a ``flax.nnx`` module.

    The constructor creates all state. An optimizer updates ``nnx.Param``: nothing with ``codebook="ema"``, the codes
    with ``"gradient"``. The rest of the codebook is :class:`CodebookState`, which calls in training update in place.
    Random numbers come from the stream ``quantizer`` of ``rngs``, or its default stream; evaluation draws none.

    Whether a call trains must be given, as in linen, if it changes anything: by ``model.train()`` and
    ``model.eval()`` (or ``nnx.view(model, deterministic=True)``), by the linen module's own ``train``, or by the
    argument ``train`` of the call, which overrides the others.

    Attributes:
      module: The linen quantizer.
      variables: Its variables, by collection and name: ``variables["codebook"]["codes"]`` is an ``nnx.Variable``, with
        the names of sharded axes that its initializer gives.
      deterministic: True in evaluation mode, False in training mode, None as long as neither was chosen.

    Args:
      module: Any quantizer of this package, such as ``VectorQuantizer(num_codes=512)``.
      dim: Number of features of the vectors to be quantized.
      rngs: Streams of initial codes and of later random numbers.
      variables: Start from these variables of the linen quantizer, as its ``init`` or :mod:`vqjax.importing` returns
        them; they are copied.
      **inputs: One token of each further input that the module's call takes, such as ``condition``.

    Raises:
      UserError: An argument is of the wrong kind.

    Example:
      >>> import jax
      >>> from vqjax import VectorQuantizer
      >>> class Autoencoder(nnx.Module):
      ...   def __init__(self, rngs):
      ...     self.encoder = nnx.Linear(8, 4, rngs=rngs)
      ...     self.vq = Quantizer(VectorQuantizer(num_codes=16), dim=4, rngs=rngs)
      ...     self.decoder = nnx.Linear(4, 8, rngs=rngs)
      ...   def __call__(self, x, train=False):
      ...     out = self.vq(self.encoder(x), train=train)
      ...     return self.decoder(out.quantized), out
      >>> model, x = Autoencoder(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (32, 8))
      >>> before = model.vq.variables["codebook"]["codes"][...]
      >>> reconstruction, out = model(x, train=True)
      >>> bool((model.vq.variables["codebook"]["codes"][...] != before).any())
      True
      >>> indices = model.vq.encode(model.encoder(x))
      >>> model.vq.decode(indices).shape
      (32, 4)
      >>> sorted(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
      ['decoder', 'encoder']
    """

    def __init__(
        self,
        module: nn.Module,
        dim: int,
        *,
        rngs: nnx.Rngs,
        variables: Mapping[str, Any] | None = None,
        **inputs: Array,
    ) -> None:
        _check_arguments(module, dim, rngs)
        mode = getattr(module, "train", None)
        self.deterministic = None if mode is None else not mode
        self.module = module if mode is None else module.clone(train=None)
        self.rngs = _stream(rngs, "quantizer").fork()
        keys = {"params": _stream(rngs, "params")(), "quantizer": self.rngs()}
        # Some quantizers take maps: here of one position.
        one_vector = jnp.zeros((*[1] * getattr(module, "spatial_dims", 1), dim), jnp.float32)
        created = module.init(keys, one_vector, **inputs)
        if variables is not None:
            variables = nn.unbox(variables)
            _check_variables(nn.unbox(created), variables)
            created = nn.meta.replace_boxed(created, jax.tree.map(jnp.array, variables))
        # Without a mesh the names of sharded axes are kept for later.
        with nnx.use_eager_sharding(nnx.using_eager_sharding() and not jax.sharding.get_abstract_mesh().empty):
            self.variables = nnx.data({name: _to_nnx(name, tree) for name, tree in created.items()})

    def __call__(
        self,
        z: Float[Array, "*batch dim"],
        mask: Bool[Array, "*batch"] | None = None,
        train: bool | None = None,
        settings: Mapping[str, Any] | None = None,
        **inputs: Array,
    ) -> QuantizerOutput:
        """Quantize vectors, and in training update the codebook in place.

        Args:
          z: Vectors along the last axis, any leading axes, any floating-point dtype.
          mask: True for valid tokens.
          train: Update the codebook after the lookup; by default as ``train()``, ``eval()`` or the constructor said.
          settings: Values of the module's fields in this call, which may be traced, by name:
            ``{"commitment_weight": weight}``. See :func:`vqjax.quantizers.replace_settings`.
          **inputs: Further inputs of the module's call.

        Returns:
          The output of the linen module.

        Raises:
          UserError: Nothing says whether the call trains, and it matters.
        """
        if train is None and self.deterministic is not None:
            train = not self.deterministic
        module = replace_settings(self.module, settings or {})
        # Anything else, such as a traced value, is for the module to refuse.
        update = isinstance(train, bool | np.bool_) and bool(train)
        return self._apply("__call__", z, mask, update=update, module=module, train=train, **inputs)

    def encode(
        self, z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None = None, **options: Any
    ) -> Int[Array, "..."]:
        """Return the indices of vectors; change nothing.

        Args:
          z: Vectors along the last axis.
          mask: True for valid tokens; the others get index -1.
          **options: Further arguments of the module's ``encode``, such as ``num_quantizers`` of a ``Residual``.

        Returns:
          int32 indices.
        """
        return self._apply("encode", z, mask, **options)

    def decode(self, indices: Integer[Array, "..."], **options: Any) -> Float[Array, "..."]:
        """Return the vectors of indices; change nothing.

        Args:
          indices: As ``encode`` returns them.
          **options: Further arguments of the module's ``decode``, such as ``shape`` of a ``MultiScaleVQ``.

        Returns:
          Vectors in float32.
        """
        return self._apply("decode", indices, **options)

    def code_vectors(self) -> Any:
        """Return the codes that are looked up, as the module's ``code_vectors`` does."""
        return self._apply("code_vectors")

    def kmeans_init(
        self, z: Float[Array, "*batch dim"], mask: Bool[Array, "*batch"] | None = None, **options: Any
    ) -> None:
        """Initialize the codebook in place with k-means on a batch. Call it before training.

        Args:
          z: The vectors to cluster.
          mask: True for valid tokens.
          **options: Further arguments of the module's ``kmeans_init``.
        """
        self._apply("kmeans_init", z, mask, update=True, **options)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Take the mode from ``nnx.view``.

        Args:
          deterministic: Evaluation mode, if given.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _apply(
        self, method: str, *arguments: Any, update: bool = False, module: nn.Module | None = None, **options: Any
    ) -> Any:
        module = self.module if module is None else module
        values = jax.tree.map(nnx.Variable.get_value, self.variables, is_leaf=_is_variable)
        if not update:
            return module.apply(values, *arguments, method=method, **options)
        # Codes that are parameters move by the optimizer, but start from clusters.
        state = [collection for collection in values if collection != "params" or method == "kmeans_init"]
        rngs = {"quantizer": self.rngs()}
        out, updates = module.apply(values, *arguments, method=method, mutable=state, rngs=rngs, **options)
        # In place: callers such as nnx.scan hold references to these variables.
        for collection, tree in updates.items():
            jax.tree.map(nnx.Variable.set_value, self.variables[collection], tree, is_leaf=_is_variable)
        return out


def _is_variable(value: object) -> bool:
    return isinstance(value, nnx.Variable)


def _to_nnx(collection: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with the metadata of their boxes, such as the names of sharded axes."""
    return jax.tree.map(partial(to_nnx_var, collection), tree, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def _stream(rngs: nnx.Rngs, name: str) -> nnx.RngStream:
    if name not in rngs and "default" not in rngs:
        raise UserError(
            f"rngs must have a stream {name!r} or a default, got {sorted(rngs)}; pass nnx.Rngs(0), or "
            "nnx.Rngs(params=0, quantizer=1)."
        )
    return rngs[name]


def _check_arguments(module: object, dim: object, rngs: object) -> None:
    if not isinstance(module, nn.Module) or not all(hasattr(module, name) for name in ("encode", "decode")):
        kind = module if isinstance(module, type) else type(module)
        hint = "; pass an instance" if kind is module else ""
        raise UserError(
            f"module must be a quantizer such as VectorQuantizer(num_codes=512), got {kind.__name__}{hint}."
        )
    require_count("dim", dim)
    require(isinstance(rngs, nnx.Rngs), "rngs", rngs, "nnx.Rngs(seed)")


def _check_variables(created: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    expected, found = map(shapes_by_path, (created, given))
    if expected != found:
        raise UserError(
            f"variables must have the shapes of this module, {expected}, got {found}; pass those of the same "
            "quantizer, with the same dim."
        )
