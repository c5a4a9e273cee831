"""Comparison of two sets of images, such as generated and real ones, by the features of a frozen network."""

import functools
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32

from vqjax.data.whole_images import WholeImage, WholeImages, whole_images
from vqjax.errors import UserError
from vqjax.evaluation import EvaluationResult, terminal_table, write_report
from vqjax.evaluation.features import FeatureNetwork, Features
from vqjax.evaluation.fid import ImageSet, Measures
from vqjax.evaluation.partial import PartialSums
from vqjax.evaluation.scaling import SCALINGS, Scaling
from vqjax.evaluation.statistics import Statistics, check_features, load_statistics
from vqjax.reporting.progress import progress_of
from vqjax.runtime.paths import local_path
from vqjax.training.devices import make_mesh, without_mesh
from vqjax.training.protocols import note_few_images

# Images of sizes that agree in the multiple of this above them share what is compiled for them.
_PADDING = 64


@without_mesh()
def compare_images(
    *,
    fake: str,
    real: str | None = None,
    statistics: str | None = None,
    features: str = "inception",
    scaling: str | None = None,
    batch_size: int = 32,
    output: str | None = None,
) -> EvaluationResult:
    """Compare images with others by FID and its kin, print the table, and write a report if --output names a place.

    A set of images is a directory, searched recursively, in which every image is taken at its own size, or an .npz
    with uint8 arr_0 of shape [images, height, width, 3]. Nothing is cropped, turned upright, or laid over a background:
    pixels are those that pytorch-fid and clean-fid see.

    Args:
      fake: The images that are measured, such as generated ones: a directory or an .npz.
      real: The images that they are compared with, likewise.
      statistics: Instead of ``real``, a file of vqjax stats, pytorch-fid or guided diffusion (.npz), which allows for
        Fréchet distances alone.
      features: File or name of the feature network: Inception of pytorch-fid (pt_inception-2015-12-05-6726825d.pth),
        DINOv2 (dinov2_vitl14_pretrain.pth), VGG-16 or AlexNet of torchvision, a network of studies/features, or
        the run of a classifier.
      scaling: How images are scaled to the network: pytorch-fid, clean-fid, tf1, dgm-eval or torch-fidelity-dinov2; as
        published for the network by default.
      batch_size: Images at once.
      output: Directory for metrics.json and report.md; if the command is killed, it goes on from sums in there.

    Returns:
      The numbers.

    Raises:
      UserError: Images or weights cannot be read, or an argument is out of range.
    """
    if (real is None) == (statistics is None):
        raise UserError("--real or --statistics must name what --fake is compared with, one of the two.")
    if batch_size < 1:
        raise UserError(f"--batch_size must be a positive integer, got {batch_size}.")
    network = FeatureNetwork.from_file(features, scaling)
    sets = {"--fake": whole_images(fake, "--fake")}
    if real is not None:
        sets["--real"] = whole_images(real, "--real")
    reference = None if statistics is None else load_statistics(statistics)
    if reference is not None:
        check_features(reference, network.identity, network.dim)
    for flag, images in sets.items():
        print(f"{flag}: {len(images)} images of {images.name}", file=sys.stderr, flush=True)
    directory = None if output is None else _created(output)
    measured, partial = _measured(network, sets, batch_size, directory)
    fewest = min(images.pool.count for images in measured.values())
    note_few_images(network, fewest)
    print("computing distances", file=sys.stderr, flush=True)
    source = "" if statistics is None else f"to_{re.sub(r'\W+', '_', Path(statistics).stem)}"
    result = _numbers(network, measured["--fake"], measured.get("--real", reference), source)
    context = {flag.removeprefix("--"): images.name for flag, images in sets.items()}
    if statistics is not None:
        context["statistics"] = statistics
    print(terminal_table(result, context))
    if directory is not None:
        write_report(directory, result, context=context, pictures={})
        print(f"report:  {directory / 'report.md'}")
        for sums in partial:
            sums.remove()
    return result


def _created(output: str) -> Path:
    """Make the directory of the report, which is refused now rather than when everything has been measured."""
    directory = local_path(output, "--output")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"--output must be a directory to write into, got {output} ({error.strerror}).") from error
    return directory


def _measured(
    network: FeatureNetwork, sets: Mapping[str, WholeImages], batch_size: int, directory: Path | None
) -> tuple[dict[str, ImageSet], list[PartialSums]]:
    """What is kept of the features of each set, and the sums in a directory from which that goes on."""
    mesh, total = make_mesh(None, {}), sum(map(len, sets.values()))
    batch_size = min(batch_size, max(map(len, sets.values())))
    batch_size += -batch_size % mesh.size
    show, before, measured, stored = progress_of(total), 0, {}, []
    for flag, images in sets.items():
        partial = None
        # Images of several sizes are not measured in their order.
        if directory is not None and network.size is not None:
            file = directory / f"partial_{flag.removeprefix('--')}.npz"
            partial = PartialSums(file, f"{images.fingerprint}; {network.identity}")
            stored.append(partial)
            if partial.images:
                print(f"{flag}: {partial.images} of them have been measured before", file=sys.stderr, flush=True)
        measured[flag] = measure_images(
            network,
            images,
            batch_size=batch_size,
            mesh=mesh,
            partial=partial,
            progress=lambda done, before=before: show(before + done),
        )
        before += len(images)
    return measured, stored


def measure_images(
    network: FeatureNetwork,
    images: WholeImages,
    *,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    partial: PartialSums | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Compute the features of images of any sizes, each of which counts once.

    Args:
      network: The network.
      images: The images.
      batch_size: Images that go through the network at once, a multiple of the number of devices.
      mesh: Devices that share a batch along the axis ``data``; one by default.
      partial: Sums of the first images, if they have been measured before; the network takes images of one size.
      progress: Called after each batch with the number of images done.

    Returns:
      What is kept of the features.

    Raises:
      UserError: An image cannot be read.
    """
    (kept,) = [ImageSet()] if partial is None else partial.states([ImageSet()])
    for scaled in _scaled_batches(network, images.read(kept.pool.count), batch_size):
        number = len(scaled)
        batch = jnp.stack([*scaled, *[jnp.zeros_like(scaled[0])] * (batch_size - number)])
        if mesh is not None:
            batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        features = [None if x is None else np.asarray(x)[:number] for x in _features(network, batch)]
        kept = kept.added(Features(*features))
        if partial is not None:
            partial.save([kept], images=kept.pool.count, next_index=kept.pool.count)
        if progress is not None:
            progress(kept.pool.count)
    return kept


def _scaled_batches(
    network: FeatureNetwork, images: Iterable[WholeImage], batch_size: int
) -> Iterator[list[Float[Array, "height width 3"]]]:
    """Yield scaled images, in batches of one size each: in order, if the network takes a single size."""
    scaling = SCALINGS[network.scaling]

    @functools.lru_cache(maxsize=256)
    def padded_weights(length: int, size: int) -> Float32[np.ndarray, "padded {size}"]:
        return np.pad(scaling.weights(length, size), [(0, -length % _PADDING), (0, 0)])

    waiting = defaultdict(list)
    for image in images:
        shape = image.shape[:2]
        size = (network.size, network.size) if network.size else shape
        padded = np.pad(image, [*((0, -length % _PADDING) for length in shape), (0, 0)])
        scaled = _scaled(scaling, padded[None], *map(padded_weights, shape, size))[0]
        waiting[scaled.shape].append(scaled)
        if len(waiting[scaled.shape]) == batch_size:
            yield waiting.pop(scaled.shape)
    yield from waiting.values()


@jax.jit(static_argnames="scaling")
def _scaled(scaling: Scaling, image: Array, of_rows: Array, of_columns: Array) -> Float[Array, "1 height width 3"]:
    return scaling.apply(image, of_rows, of_columns)


@jax.jit
def _features(network: FeatureNetwork, scaled: Float[Array, "batch height width 3"]) -> Features:
    return network.of_scaled(scaled)


def _numbers(
    network: FeatureNetwork, fake: ImageSet, reference: ImageSet | Statistics, source: str
) -> EvaluationResult:
    """All numbers of two sets, or those that statistics of one allow for."""
    these, count = f"{fake.pool.count:,} fake images", reference.pool.count
    if isinstance(reference, ImageSet):
        measures = Measures(network, these=these, those=f"{count:,} real images")
        numbers = {"real_images": count} | measures.distances(fake, reference)
    else:
        measures = Measures(network, reference=source, these=these, those=reference.described)
        numbers = measures.moments(fake, reference)
    numbers = {"images": fake.pool.count} | numbers | measures.scores(fake)
    counts = {"images": "images of --fake, each once", "real_images": "images of --real, each once"}
    described = counts | measures.protocols()
    return EvaluationResult(numbers, {name: described[name] for name in numbers}, {})
