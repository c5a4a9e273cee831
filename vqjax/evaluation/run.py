"""Evaluates a model on a dataset, and says everything that has to stand beside the numbers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vqjax.data import ImageDataset, evaluation_batches
from vqjax.evaluation.evaluate import EvaluationResult, Reconstruction, evaluate
from vqjax.models.families import FAMILIES


def evaluate_model(
    model: nn.Module,
    variables: Any,
    dataset: ImageDataset,
    *,
    batch_size: int,
    collect_indices: bool = False,
    progress: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
) -> EvaluationResult:
    """Reconstructs a dataset with a model and measures the result; changes nothing.

    Args:
      model: The autoencoder.
      variables: Its variables.
      dataset: The images.
      batch_size: Images per batch, over which ``perplexity_batch`` is measured.
      collect_indices: Keep the indices of all images.
      progress: Called with the number of images done.
      mesh: Devices that share each batch, those on which the variables are; one device by default.

    Returns:
      Numbers, first pictures, and indices if asked.
    """
    return evaluate(
        jax.tree_util.Partial(_reconstruct_with(model), variables),
        evaluation_batches(dataset, min(batch_size, len(dataset))),
        num_codes=model.quantizer.num_codes,
        num_codebooks=model.quantizer.num_codebooks,
        collect_indices=collect_indices,
        progress=progress,
        mesh=mesh,
    )


def evaluation_context(config: Any, num_codes: int, dataset: ImageDataset, step: int, split: str) -> dict[str, Any]:
    """What was evaluated, for the head of a report.

    Args:
      config: The run's config.
      num_codes: Of a codebook.
      dataset: The evaluated images.
      step: The checkpoint's training step.
      split: Name of the split.

    Returns:
      Facts by name.
    """
    fields = FAMILIES[config.quantizer.name].fields
    return {
        "dataset": dataset.name,
        "split": split,
        "image_size": config.data.image_size,
        "checkpoint_step": step,
        "model": config.model.name,
        "quantizer": config.quantizer.name,
        "num_codes": num_codes,
        "seed": config.seed,
    } | {name: config.quantizer[name] for name in ("estimator", "codebook_update") if name in fields}


# One function object per model: evaluations during training then share one compilation.
@functools.cache
def _reconstruct_with(model: nn.Module) -> Callable[..., Reconstruction]:
    def reconstruct(
        variables: Any, images: Float[Array, "batch height width channels"], mask: Bool[Array, " batch"]
    ) -> Reconstruction:
        output = model.apply(variables, images, mask)
        metrics = output.quantizer.metrics
        losses = (metrics.get(name) for name in ("quantization_error", "codebook_loss", "commitment_loss"))
        return Reconstruction(output.reconstruction, output.quantizer.indices, *losses)

    return reconstruct
