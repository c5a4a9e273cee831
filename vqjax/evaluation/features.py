"""Frozen networks whose features evaluations compare, each with the way in which images come to it."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped, UInt8

from vqjax.checkpointing.checkpoints import load_networks
from vqjax.errors import UserError, did_you_mean
from vqjax.evaluation.scaling import SCALINGS
from vqjax.importing.dinov2 import load_dinov2
from vqjax.importing.features import load_features, load_resnet
from vqjax.importing.i3d import load_i3d
from vqjax.importing.inception import load_inception
from vqjax.importing.state_dict import StateDict, read_state_dict
from vqjax.models import dinov2, i3d
from vqjax.models.classifiers import Classifier
from vqjax.models.i3d import I3D, I3DFeatures
from vqjax.models.inception import INPUT_SIZE, InceptionFeatures
from vqjax.models.registry import build_model
from vqjax.runtime.files import file_checksum
from vqjax.runtime.paths import local_path

# A network takes large images: Inception 8 MB each for what it computes.
_AT_ONCE = 32


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
      pool: One vector per image, which Fréchet and kernel distances and precision and recall compare.
      logits: Logits of classes, for the Inception score; None if the network has none.
      spatial: Features with a place in the image, for sFID; None if the network defines none.
    """

    pool: Float[Array | np.ndarray, "batch dim"]
    logits: Float[Array | np.ndarray, "batch classes"] | None = None
    spatial: Float[Array | np.ndarray, "batch places"] | None = None


_CHECKSUM = re.compile(r"-([0-9a-f]{8})\.\w+$")


class Known(NamedTuple):
    """A published file of weights.

    Attributes:
      files: Names under which tools store it; eight digits behind the last dash, if there are any, begin its SHA-256.
      publisher: Who publishes it.
      others: Whether there are other weights for the same network, from which only its name tells this file.
    """

    files: tuple[str, ...]
    publisher: str
    others: bool = False

    def may_be(self, path: Path, checksum: str) -> bool:
        """Return whether a file of this SHA-256 may be it, as far as the names tell."""
        if self.others and path.stem not in {Path(file).stem for file in self.files}:
            return False
        known = [match[1] for file in self.files if (match := _CHECKSUM.search(file))]
        return not known or checksum.startswith(tuple(known))


_DINOV2_SIZES = {384: "vits14", 768: "vitb14", 1024: "vitl14"}

KNOWN = {
    "inception": Known(
        ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        "pytorch-fid and torch-fidelity",
    ),
    "vgg16": Known(("vgg16-397923af.pth",), "torchvision"),
    "alexnet": Known(("alexnet-owt-7be5be79.pth",), "torchvision"),
    # The weights of the Fréchet video distance; those of pytorch-i3d have the same entries.
    "i3d": Known(("i3d_pretrained_400.pt",), "wilson1yan/VideoGPT", others=True),
} | {
    f"dinov2_{size}{registers}": Known((f"dinov2_{size}{file}_pretrain.pth",), "facebookresearch/dinov2")
    for size in _DINOV2_SIZES.values()
    for registers, file in (("", ""), ("_reg", "_reg4"))
}
"""Networks that are found by their name where PyTorch's tools have stored them."""


class FeatureNetwork(flax.struct.PyTreeNode):
    """A frozen network, with the way in which images of 8 bits come to it.

    Attributes:
      module: A module that maps images to :class:`vqjax.models.inception.InceptionFeatures`, to one vector per image,
        or to feature maps, of which the mean over the places of the last one is taken.
      variables: Its variables.
      name: Name of the network, with a checksum if its weights are not the published ones; ``"inception"`` is left out
        of the names of numbers.
      weights: What identifies the variables, for protocols.
      scaling: How images are scaled and normalized, a key of :data:`vqjax.evaluation.scaling.SCALINGS`.
      size: Height and width that they are scaled to, in pixels; None for their own.
      usual_scaling: The scaling that is not named in the names of numbers.
      takes_clips: Whether the module maps clips, not images; see :mod:`vqjax.evaluation.clip_features`.

    Example:
      >>> from vqjax.models.inception import FIDInception
      >>> network = FeatureNetwork(FIDInception(), {}, name="inception", weights="SHA-256 6726825d")
      >>> network.how.partition(", ")[0]
      'inception of SHA-256 6726825d; images of 8 bits'
    """

    module: nn.Module = flax.struct.field(pytree_node=False)
    variables: PyTree[Any]
    name: str = flax.struct.field(pytree_node=False)
    weights: str = flax.struct.field(pytree_node=False)
    scaling: str = flax.struct.field(pytree_node=False, default="pytorch-fid")
    size: int | None = flax.struct.field(pytree_node=False, default=INPUT_SIZE)
    usual_scaling: str = flax.struct.field(pytree_node=False, default="pytorch-fid")
    takes_clips: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def from_file(cls, name_or_file: str | os.PathLike[str], scaling: str | None = None) -> "FeatureNetwork":
        """Return the network of a file, which is recognized by its entries.

        Args:
          name_or_file: The file: the Inception network of pytorch-fid, DINOv2, torchvision's VGG-16 or AlexNet, I3D, or
            a network of ``studies/features``; a key of :data:`KNOWN`, which is looked for where PyTorch's tools store
            it; or the directory of a run that has trained a classifier.
          scaling: How images are scaled; as the network's own publisher does by default.

        Raises:
          UserError: There is no such file, its content is not that of its name, or it is not of a known network.
        """
        if scaling is not None and scaling not in SCALINGS:
            raise UserError(f"scaling must be one of {sorted(SCALINGS)}, got {scaling!r}.")
        if Path(name_or_file).is_dir():
            return cls._from_run(local_path(name_or_file, "features"), scaling)
        path = _found(name_or_file)
        checksum = file_checksum(path)
        _check_content(path, checksum)
        arrays = read_state_dict(path)
        for is_of, load in _NETWORKS:
            if is_of(arrays):
                name, module, variables, size, usual = load(arrays)
                break
        else:
            raise UserError(
                f"{path} must hold the weights of a feature network ({', '.join(KNOWN)}, or one of studies/features), "
                f"got entries {sorted(arrays)[:3]}; name another file."
            )
        # With other weights than the published ones, it has other features.
        if name not in KNOWN or not KNOWN[name].may_be(path, checksum):
            name = f"{name}_{checksum[:8]}"
        takes_clips = isinstance(module, I3D)
        return cls(module, variables, name, f"SHA-256 {checksum[:8]}", scaling or usual, size, usual, takes_clips)

    @classmethod
    def _from_run(cls, workdir: Path, scaling: str | None) -> "FeatureNetwork":
        """The classifier of a run, with images at the size that it was trained on."""
        networks = load_networks(workdir)
        config = networks.info.config
        model = build_model(config["model"], config["quantizer"])
        if not isinstance(model, Classifier):
            raise UserError(
                f"features must be a run of a classifier, got one of {config['model']['name']!r}: {workdir}."
            )
        params, digest = (networks.ema_params or networks.params)["classifier"], hashlib.sha256()
        variables = {"params": params, **networks.variables["classifier"]}
        for leaf in jax.tree.leaves(variables):
            digest.update(np.asarray(leaf).tobytes())
        name, size = f"{config['model']['name']}_{digest.hexdigest()[:8]}", config["data"]["image_size"]
        channels = config["data"].get("channels", 3)
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) > 1 or channels != 3:
            raise UserError(
                f"features must be a run of a classifier of square images in color, got {workdir}, of "
                f"image_size={size} and channels={channels}."
            )
        usual = "pytorch-fid"
        return cls(model, variables, name, f"the run {workdir.name}", scaling or usual, min(sides), usual)

    @property
    def how(self) -> str:
        """Network, weights and scaling, for protocols."""
        own = f"their own size, in the range of {self.scaling}"
        how = own if self.size is None else f"{self.size} pixels, {SCALINGS[self.scaling].how}"
        return f"{self.name} of {self.weights}; images of 8 bits, {how}"

    @property
    def identity(self) -> str:
        """What features depend on, for comparison; unlike :attr:`how`, no text that may be worded anew."""
        return f"{self.name}, {self.weights}, {self.scaling}, {self.size}"

    @property
    def unusual_scaling(self) -> str:
        """What the names of numbers say of the scaling; empty if it is the usual one."""
        return "" if self.scaling == self.usual_scaling else self.scaling.removesuffix("-fid").replace("-", "_")

    @property
    def dim(self) -> int:
        """Number of features of an image."""
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
        return jax.eval_shape(self, images).pool.shape[1]

    def __call__(self, images: UInt8[Array, "batch height width channels"]) -> Features:
        """Return the features of images of 8 bits, in color or gray."""
        if self.takes_clips:
            raise UserError(f"features must be of a network of images, got {self.name}, which takes clips.")
        if images.shape[-1] not in (1, 3):
            raise UserError(f"images must be in color or gray for {self.name}, got {images.shape[-1]} channels.")
        return in_parts(self._of_part, in_color(images), _AT_ONCE)

    def _of_part(self, images: UInt8[Array, "batch height width 3"]) -> Features:
        return self.of_scaled(SCALINGS[self.scaling](images, self.size or images.shape[1:3]))

    def of_scaled(self, images: Float[Array, "batch *frames height width 3"]) -> Features:
        """Return the features of images that have been scaled, or of clips, all at once."""
        if isinstance(self.module, Classifier):
            classified = self.module.apply(self.variables, images, train=False)
            return Features(classified.features, classified.logits)
        output = self.module.apply(self.variables, images)
        if isinstance(output, InceptionFeatures):
            return Features(*output)
        if isinstance(output, I3DFeatures):
            return Features(output.logits)
        if isinstance(output, tuple):
            return Features(jnp.mean(output[-1], axis=(1, 2)))
        return Features(output)


def in_parts(
    function: Callable[[Array], PyTree[Array]], rows: Shaped[Array, "batch ..."], at_once: int
) -> PyTree[Array]:
    """Apply a function to few rows of a batch at a time, so that memory does not grow with the batch.

    Args:
      function: Maps rows to arrays with as many.
      rows: All rows.
      at_once: Largest number of rows at a time.

    Returns:
      The arrays of all rows.

    Example:
      >>> in_parts(lambda rows: 2 * rows, jnp.arange(5), 2).tolist()
      [0, 2, 4, 6, 8]
    """
    number = len(rows)
    parts = -(-number // at_once)
    if parts <= 1:
        return function(rows)
    size = -(-number // parts)
    padded = jnp.pad(rows, [(0, parts * size - number), *[(0, 0)] * (rows.ndim - 1)])
    # A part takes rows of all devices that share the batch.
    results = jax.lax.map(function, jnp.swapaxes(padded.reshape(size, parts, *rows.shape[1:]), 0, 1))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(parts * size, *x.shape[2:])[:number], results)


def in_color(images: Shaped[Array, "batch height width channels"]) -> Shaped[Array, "batch height width _"]:
    """Return gray images with their channel three times, as tools read gray files, and others as they are.

    Args:
      images: Images.

    Example:
      >>> in_color(jnp.zeros((2, 8, 8, 1))).shape, in_color(jnp.zeros((2, 8, 8, 3))).shape
      ((2, 8, 8, 3), (2, 8, 8, 3))
    """
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _found(name_or_file: str | os.PathLike[str]) -> Path:
    """The file, or where the tools of PyTorch have stored the network of this name."""
    path = local_path(name_or_file, "features")
    if path.exists() or str(name_or_file) not in KNOWN:
        if not path.is_file():
            hint = "" if path.suffix else f" {did_you_mean(str(name_or_file), KNOWN)}"
            raise UserError(f"features must be a file or one of {', '.join(KNOWN)}, got {str(name_or_file)!r}.{hint}")
        return path
    known = KNOWN[str(name_or_file)]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("TORCH_HOME") or Path(cache, "torch")).expanduser()
    for file in known.files:
        if (stored := home / "hub" / "checkpoints" / file).is_file():
            return stored
    raise UserError(
        f"{' or '.join(known.files)} must be in {home / 'hub' / 'checkpoints'} for the features {name_or_file!r}, and "
        f"is not; get it from {known.publisher}, or pass its path."
    )


def _check_content(path: Path, checksum: str) -> None:
    """Refuse a published file, whose name ends with the first digits of its checksum, with another content."""
    for known in KNOWN.values():
        if path.name in known.files and not known.may_be(path, checksum):
            expected = _CHECKSUM.search(path.name)[1]
            raise UserError(
                f"{path} must have a SHA-256 that begins with {expected}, got {checksum[:8]}: it is cut or changed; "
                "get it again."
            )


_Loaded = tuple[str, nn.Module, PyTree[Any], int | None, str]


def _inception(arrays: StateDict) -> _Loaded:
    return "inception", *load_inception(arrays), INPUT_SIZE, "pytorch-fid"


def _torchvision(arrays: StateDict) -> _Loaded:
    module, variables = load_features(arrays)
    return type(module).__name__.lower(), module, variables, 224, "pytorch-fid"


def _dinov2(arrays: StateDict) -> _Loaded:
    module, variables = load_dinov2(arrays)
    size = _DINOV2_SIZES.get(module.dim, f"dim_{module.dim}")
    return f"dinov2_{size}{'_reg' if module.registers else ''}", module, variables, dinov2.INPUT_SIZE, "dgm-eval"


def _i3d(arrays: StateDict) -> _Loaded:
    return "i3d", *load_i3d(arrays), i3d.INPUT_SIZE, "fvd"


def _resnet(arrays: StateDict) -> _Loaded:
    return "resnet", *load_resnet(arrays), None, "pytorch-fid"


_NETWORKS: tuple[tuple[Callable[[StateDict], bool], Callable[[StateDict], _Loaded]], ...] = (
    (lambda arrays: any(key.startswith(("Conv3d_", "logits.conv3d.")) for key in arrays), _i3d),
    (lambda arrays: any(key.startswith("Mixed_") for key in arrays), _inception),
    (lambda arrays: any(key.endswith(("features.0.weight", "net.slice1.0.weight")) for key in arrays), _torchvision),
    (lambda arrays: not {"cls_token", "embeddings.cls_token"}.isdisjoint(arrays), _dinov2),
    (lambda arrays: any(key.startswith("params.stem") for key in arrays), _resnet),
)
"""By an entry that only one network has: how it is read."""
