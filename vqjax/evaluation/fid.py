"""FID and its kin: distances of two sets of images by the features of a frozen network, added up batch by batch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, PyTree, UInt8, UInt64

from vqjax.data import to_uint8
from vqjax.errors import UserError
from vqjax.evaluation.collectors import Collector
from vqjax.evaluation.features import FeatureNetwork, Features
from vqjax.evaluation.frechet import Moments, frechet_distance, inception_score
from vqjax.evaluation.manifold import kernel_distance, precision_and_recall
from vqjax.evaluation.metric import Metric, Numbers, Outputs
from vqjax.evaluation.statistics import Statistics

Rows = Float[np.ndarray, "images dim"]

SAMPLE = 10_000
"""Images whose features are kept, for the numbers that compare each image with each."""

_SPLITS = 10
_SUBSETS, _SUBSET = 100, 1000
_NEIGHBORS, _NEIGHBORS_COVERED = 3, 5


class Sample(NamedTuple):
    """Features of at most :data:`SAMPLE` images, a random choice that depends on nothing but their places.

    Attributes:
      seen: Number of images so far.
      places: Places of the kept images among all, one array per batch.
      rows: Their features, likewise.

    Example:
      >>> sample = Sample().added(np.zeros((3, 2))).added(np.ones((1, 2)))
      >>> sample.features[:, 0].tolist()
      [0.0, 0.0, 0.0, 1.0]
    """

    seen: int = 0
    places: tuple[Int64[np.ndarray, " _"], ...] = ()
    rows: tuple[Float[np.ndarray, "_ dim"], ...] = ()

    def added(self, features: Rows) -> "Sample":
        """Return the sample with more images."""
        seen = self.seen + len(features)
        both = _Sampled((*self.places, np.arange(self.seen, seen)), (*self.rows, features))
        # Twice as many are kept for a while, so that few copies are made.
        if sum(map(len, both.places)) > 2 * SAMPLE:
            both = _Sampled(*((part,) for part in both.chosen()))
        return Sample(seen, *both)

    @property
    def features(self) -> Rows:
        """The features in the order of the images."""
        return _Sampled(self.places, self.rows).chosen()[1]


class _Sampled(NamedTuple):
    places: tuple[Int64[np.ndarray, " _"], ...]
    rows: tuple[Float[np.ndarray, "_ dim"], ...]

    def chosen(self) -> tuple[Int64[np.ndarray, " kept"], Float[np.ndarray, "kept dim"]]:
        """Places and features of those that come first in a random order, sorted by place."""
        places, rows = np.concatenate(self.places), np.concatenate(self.rows)
        first = np.sort(np.argsort(_shuffled(places.astype(np.uint64)), kind="stable")[:SAMPLE])
        return places[first], rows[first]


def _shuffled(numbers: UInt64[np.ndarray, " _"]) -> UInt64[np.ndarray, " _"]:
    """A pseudo-random number for each (SplitMix64: Steele et al., 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class ImageSet(NamedTuple):
    """What is kept of the features of a set of images; memory does not grow with it, but for logits.

    Attributes:
      pool: Moments of one vector per image.
      spatial: Moments of the features with a place, if the network has them.
      sample: Vectors of some of the images.
      logits: Logits of all, one array per batch.

    Example:
      >>> one, other = (ImageSet().added(Features(np.eye(4)[:, :2] + shift)) for shift in (0, 1))
      >>> round(fid_of(one, other), 6)
      2.0
    """

    pool: Moments = Moments.none()
    spatial: Moments = Moments.none()
    sample: Sample = Sample()
    logits: tuple[Float[np.ndarray, "_ classes"], ...] = ()

    def added(self, features: Features, *, with_sample: bool = True, with_logits: bool = True) -> "ImageSet":
        """Return the set with more images.

        Args:
          features: Features of these images, at least one.
          with_sample: Whether vectors are kept.
          with_logits: Whether logits are kept.

        Raises:
          UserError: A feature is not finite; the message names the image.
        """
        pool = np.asarray(features.pool)
        if not (finite := np.isfinite(pool).all(axis=1)).all():
            image = self.pool.count + int(np.argmin(finite))
            raise UserError(
                f"features must be finite, got others for image {image}, counted from 0; look at that image, and at "
                "what the decoder returns."
            )
        spatial = self.spatial if features.spatial is None else self.spatial.including(features.spatial)
        keeps_logits = with_logits and features.logits is not None
        return ImageSet(
            self.pool.including(pool),
            spatial,
            self.sample.added(pool) if with_sample else self.sample,
            (*self.logits, np.asarray(features.logits)) if keeps_logits else self.logits,
        )


def are_finite(reconstruction: Float[Array, "batch ..."]) -> Bool[Array, " batch"]:
    """Return which reconstructions are finite: others have no pixels of 8 bits, but would be given some.

    Args:
      reconstruction: Images or clips.

    Example:
      >>> are_finite(jnp.array([[0.0, 1.0], [jnp.nan, 0.0]])).tolist()
      [True, False]
    """
    return jnp.all(jnp.isfinite(reconstruction), axis=range(1, reconstruction.ndim))


def check_finite(measured: PyTree[Array], before: int) -> None:
    """Refuse a batch with a reconstruction that is not finite.

    Args:
      measured: What is measured of a batch, with :func:`are_finite` under ``finite``.
      before: Number of examples before it.

    Raises:
      UserError: The message names the first such example.

    Example:
      >>> check_finite({"finite": jnp.array([True, False]), "valid": jnp.array([True, False])}, before=4)
    """
    finite = np.asarray(measured["finite"])[np.asarray(measured["valid"])]
    if not finite.all():
        raise UserError(
            f"reconstructions must be finite, got another for example {before + int(np.argmin(finite))}, counted from "
            "0; look at what the decoder returns."
        )


def fid_of(one: ImageSet, other: ImageSet) -> float | None:
    """Return the squared Fréchet distance of two sets; None with fewer than two images."""
    return frechet_distance(one.pool, other.pool) if min(one.pool.count, other.pool.count) > 1 else None


class Measures(NamedTuple):
    """Names and protocols of what is measured of two sets of images, so that each number says what it is.

    Attributes:
      network: The network.
      prefix: ``"r"`` for reconstructions; else empty.
      reference: What the images are compared with, the last part of the names, such as ``"val"``; else empty.
      these: The images that are measured, for protocols.
      those: The images that they are compared with.

    Example:
      >>> from vqjax.models.inception import FIDInception
      >>> network = FeatureNetwork(FIDInception(), {}, "inception", "SHA-256 6726825d", scaling="clean-fid")
      >>> measures = Measures(network, "r", "val", "reconstructions", "their originals")
      >>> measures.name("fid"), measures.name("precision"), measures.name("is")
      ('rfid_clean_val', 'precision_clean_val', 'ris_clean')
    """

    network: FeatureNetwork
    prefix: str = ""
    reference: str = ""
    these: str = "images"
    those: str = "those of the reference"

    @property
    def _overlaps(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """Numbers of a :class:`Manifold` by its neighbors; reconstructions are to be copies."""
        of_samples = ("authenticity",) if not self.prefix else ()
        return (_NEIGHBORS, ("precision", "recall")), (_NEIGHBORS_COVERED, ("density", "coverage", *of_samples))

    def name(self, measure: str) -> str:
        """Return the name of a number, which depends on all that it cannot be compared across.

        Args:
          measure: ``"fid"``, ``"sfid"``, ``"kid"``, ``"is"``, ``"precision"``, ``"recall"``, ``"density"``,
            ``"coverage"`` or ``"authenticity"``.
        """
        kind, name = measure, ""
        if self.network.name != "inception":
            kind = {"fid": "fd", "kid": "kd"}.get(measure, measure)
            name = self.network.name
        if measure in ("fid", "sfid", "kid", "is"):
            kind = f"{self.prefix}{kind}"
        # The Inception score compares the images with none, and those of the other numbers are held out.
        last = "" if measure == "is" and self.reference == "val" else self.reference
        return "_".join(filter(None, [kind, name, self.network.unusual_scaling, last]))

    def protocol(self, measure: str) -> str:
        """Return how a number is measured."""
        pair = f"of {self.these} and {self.those}"
        sample = f"on a sample if there are over {SAMPLE:,}"
        described = {
            "fid": f"squared Fréchet distance of features {pair}",
            "sfid": f"the same of seven channels of a middle layer at 17x17 places {pair}",
            "kid": f"squared MMD with a cubic kernel {pair}, mean over {_SUBSETS} subsets of {_SUBSET:,} if there are "
            f"more, {sample}",
            "is": f"Inception score of {self.these}, mean over {_SPLITS} parts in random order",
            "precision": f"share of {self.these} in a neighborhood of {self.those}, up to the {_NEIGHBORS} nearest "
            f"each, {sample}",
            "recall": f"share of {self.those} in a neighborhood of {self.these}, up to the {_NEIGHBORS} nearest "
            f"each, {sample}",
            "density": f"neighborhoods of {self.those}, up to the {_NEIGHBORS_COVERED} nearest each, around one of "
            f"{self.these}, mean divided by {_NEIGHBORS_COVERED}, {sample}",
            "coverage": f"share of {self.those} with one of {self.these} in their neighborhood, up to the "
            f"{_NEIGHBORS_COVERED} nearest, {sample}",
            "authenticity": f"share of {self.these} that are not copies, which are nearer to the nearest of "
            f"{self.those} than any other of them is, {sample}",
        }
        how = self.network.how if measure == "fid" else f"features as {self.name('fid')}"
        return f"{described[measure]}; {how}"

    def protocols(self) -> dict[str, str]:
        """Return the protocol of every number of :meth:`scores` and :meth:`distances`."""
        measures = ("fid", "sfid", "kid", *(name for _, names in self._overlaps for name in names), "is")
        described = {self.name(measure): self.protocol(measure) for measure in measures}
        return described | {
            f"{self.name('kid')}_deviation": "standard deviation over these subsets",
            f"{self.name('is')}_deviation": "standard deviation over these parts",
        }

    def scores(self, images: ImageSet) -> Numbers:
        """Return the Inception score, if the network has classes; None for fewer images than parts."""
        if not images.logits:
            return {}
        logits = np.concatenate(images.logits)
        score, deviation = inception_score(logits, _SPLITS) if len(logits) >= _SPLITS else (None, None)
        return {self.name("is"): score, f"{self.name('is')}_deviation": deviation}

    def moments(self, images: ImageSet, reference: ImageSet | Statistics) -> Numbers:
        """Return the Fréchet distances of a set from another, of which moments suffice; None below two images."""
        enough = min(images.pool.count, reference.pool.count) > 1
        numbers = {self.name("fid"): frechet_distance(reference.pool, images.pool) if enough else None}
        if min(images.spatial.count, reference.spatial.count) > 1:
            numbers[self.name("sfid")] = frechet_distance(reference.spatial, images.spatial)
        return numbers

    def distances(self, images: ImageSet, reference: ImageSet) -> Numbers:
        """Return all numbers that compare two sets; None where there are too few images.

        Args:
          images: The set that is measured: reconstructions, or generated images.
          reference: The real images.
        """
        numbers = self.moments(images, reference)
        real, made = reference.sample.features, images.sample.features
        smallest = min(len(real), len(made))
        kid = None, None
        if smallest > _SUBSET:
            kid = kernel_distance(real, made, subsets=_SUBSETS, subset_size=_SUBSET)
        elif smallest > 1:
            kid = kernel_distance(real, made, subsets=1, subset_size=smallest).mean, None
        numbers |= dict(zip((self.name("kid"), f"{self.name('kid')}_deviation"), kid, strict=True))
        for neighbors, measures in self._overlaps:
            overlap = precision_and_recall(real, made, neighbors=neighbors) if smallest > neighbors else None
            numbers |= {self.name(measure): getattr(overlap, measure, None) for measure in measures}
        return numbers


WRAPPED = "rotation_trick"
"""Reference of numbers that are measured as the code of the rotation-trick paper does."""


class _Seen(NamedTuple):
    """Originals, reconstructions, and reconstructions whose bits wrap around."""

    originals: ImageSet = ImageSet()
    reconstructions: ImageSet = ImageSet()
    wrapped: ImageSet = ImageSet()


class ReconstructionFID(Metric):
    """rFID of reconstructions and its kin: KID, sFID, the Inception score, precision and recall, density and coverage.

    Images have 8 bits; moments add up in double precision, batch by batch.

    Attributes:
      network: The network.
      reference: Last part of the names: ``"val"`` for held-out images.
      others: Statistics of other images, for the Fréchet distances of reconstructions from these as well, by the last
        part of their names.
      wrapped: Whether to measure reconstructions also as the code of the rotation-trick paper stores them: neither
        clipped nor rounded, so that what is out of range wraps around.

    Example:
      >>> from vqjax.models.inception import FIDInception
      >>> metric = ReconstructionFID(FeatureNetwork(FIDInception(), {}, "inception", "SHA-256 6726825d"))
      >>> metric.protocol["rfid_val"].startswith("squared Fréchet distance of features of reconstructions")
      True

    Source: Heusel et al., 2017 (arXiv 1706.08500); pytorch-fid.
    """

    network: FeatureNetwork
    reference: str = flax.struct.field(pytree_node=False, default="val")
    others: tuple[tuple[str, Statistics], ...] = flax.struct.field(pytree_node=False, default=())
    wrapped: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def protocol(self) -> dict[str, str]:
        described = self._measures.protocols()
        for measures, _ in self._of_others:
            described |= {measures.name(measure): measures.protocol(measure) for measure in ("fid", "sfid")}
        return described | (self._as_wrapped.protocols() if self.wrapped else {})

    @property
    def _measures(self) -> Measures:
        return Measures(self.network, "r", self.reference, "reconstructions", "their originals")

    @property
    def _as_wrapped(self) -> Measures:
        cast = "reconstructions, neither clipped nor rounded to 8 bits, as in the code of the rotation trick,"
        return Measures(self.network, "r", self._of_split(WRAPPED), cast, "their originals")

    @property
    def _of_others(self) -> list[tuple[Measures, Statistics]]:
        return [
            (Measures(self.network, "r", self._of_split(name), "reconstructions", statistics.described), statistics)
            for name, statistics in self.others
        ]

    def _of_split(self, name: str) -> str:
        """The last part of a name, without that of held-out images, which papers measure."""
        return name if self.reference == "val" else f"{name}_{self.reference}"

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        sets = [outputs["image"], to_uint8(outputs["reconstruction"])]
        if self.wrapped:
            sets.append(wrapped_to_uint8(outputs["reconstruction"]))
        features = [self.network(images) for images in sets]
        return {"valid": outputs["valid"], "finite": are_finite(outputs["reconstruction"]), "features": features}

    def init(self) -> _Seen:
        return _Seen()

    def update(self, state: _Seen, measured: PyTree[Array]) -> _Seen:
        check_finite(measured, state.reconstructions.pool.count)
        originals, reconstructions, *wrapped = (_valid(part, measured["valid"]) for part in measured["features"])
        return _Seen(
            state.originals.added(originals, with_logits=False),
            state.reconstructions.added(reconstructions),
            state.wrapped.added(wrapped[0], with_sample=False) if wrapped else state.wrapped,
        )

    def compute(self, state: _Seen) -> Numbers:
        numbers = self._measures.distances(state.reconstructions, state.originals)
        for measures, statistics in self._of_others:
            numbers |= measures.moments(state.reconstructions, statistics)
        numbers |= self._measures.scores(state.reconstructions)
        if self.wrapped:
            numbers |= self._as_wrapped.moments(state.wrapped, state.originals)
            numbers |= self._as_wrapped.scores(state.wrapped)
        return numbers


class FeatureMoments(Collector):
    """Moments of the features of the images themselves, for reference statistics.

    Attributes:
      network: The network.
    """

    network: FeatureNetwork

    def measure(self, outputs: Outputs) -> PyTree[Array]:
        features = self.network(outputs["image"])
        return {"valid": outputs["valid"], "features": features._replace(logits=None)}

    def init(self) -> ImageSet:
        return ImageSet()

    def update(self, state: ImageSet, measured: PyTree[Array]) -> ImageSet:
        return state.added(_valid(measured["features"], measured["valid"]), with_sample=False)

    def compute(self, state: ImageSet) -> dict[str, np.ndarray]:
        parts = {"pool": state.pool, "spatial": state.spatial}
        return {f"{part}_{name}": np.asarray(x) for part, of in parts.items() for name, x in of._asdict().items()}

    @staticmethod
    def statistics_of(collected: Mapping[str, np.ndarray], context: Mapping[str, Any]) -> Statistics:
        """Return the statistics in what an evaluation has collected, with facts about the images."""
        pool, spatial = (
            Moments(int(collected[f"{part}_count"]), collected[f"{part}_mean"], collected[f"{part}_scatter"])
            for part in ("pool", "spatial")
        )
        return Statistics(pool, spatial, dict(context))


def _valid(features: Features, valid: Array) -> Features:
    rows = np.asarray(valid)
    return Features(*(None if x is None else np.asarray(x)[rows] for x in features))


def wrapped_to_uint8(
    images: Float[Array, "batch height width channels"],
) -> UInt8[Array, "batch height width channels"]:
    """Cast images to 8 bits as C does: without rounding, and so that what is out of range wraps around.

    Args:
      images: In [-1, 1], or beyond.

    Example:
      >>> wrapped_to_uint8(jnp.array([-1.02, -1.0, 1.0, 1.02]).reshape(1, 1, 4, 1)).ravel().tolist()
      [254, 0, 255, 1]

    Source: the official code of the rotation-trick paper, ``src/reconstruction_fid.py``.
    """
    return (jnp.trunc((images.astype(jnp.float32) + 1) * 127.5).astype(jnp.int32) & 255).astype(jnp.uint8)
