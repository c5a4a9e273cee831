"""Trainings of the study: the config of Table 5 at a small size, and the estimators.

The names are all that a record says of a training, so another definition needs another name.
"""

from studies.common.trainings import Setting

_SMALL = ("data.image_size=32", "data.frames=8", "batch_size=8", "model.patch_size=4", "model.dtype=float32")
_SMALL += ("model.dim=96", "model.depth=2", "model.heads=3", "model.mlp_dim=288", "model.remat=False")
# The published rate belongs to runs that are a hundred times longer.
_SMALL += ("optimizer.learning_rate=5e-4",)
_DISCRIMINATOR = ("task.discriminator.channels=16", "task.discriminator.num_layers=1")

_REPLACED = ("quantizer.codebook.name=ema", "quantizer.codebook.dead_code_threshold=0.1")
_REPLACED += ("quantizer.codebook.replace.below=0.1", "quantizer.codebook_init=unit_uniform")

STEPS = 400

SETTINGS = {
    "vqvae": Setting("configs/timesformer.py:dataset=panning,discriminator=False", STEPS, _SMALL),
    "vqgan": Setting("configs/timesformer.py:dataset=panning", STEPS, (*_SMALL, *_DISCRIMINATOR)),
    "vqgan, codes replaced": Setting(
        "configs/timesformer.py:dataset=panning", STEPS, (*_SMALL, *_DISCRIMINATOR, *_REPLACED)
    ),
}
"""Without and with the discriminator, and with moving averages that replace unused codes."""

ESTIMATORS = ("straight_through", "rotation", "tangential_rotation")
