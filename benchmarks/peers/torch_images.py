"""The usual input pipeline of PyTorch: torchvision's transforms in the processes of a DataLoader."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision import datasets, transforms


def batches(folder: Path, *, image_size: int, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """Yield batches of uint8 images, endlessly: random resized crops, flipped at random.

    Args:
      folder: Folders of classes.
      image_size: Height and width in pixels.
      batch_size: Images in a batch.
      workers: Processes that decode.
    """
    crop = transforms.RandomResizedCrop(image_size, interpolation=transforms.InterpolationMode.BILINEAR)
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    images = datasets.ImageFolder(folder, transform)
    # JAX has threads, which a fork does not survive.
    options = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "spawn"}
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, drop_last=True, **options)
    while True:
        for pixels, _ in loader:
            yield pixels
