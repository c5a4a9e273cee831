"""The optimizer that a config describes."""

from typing import Any

import optax


def build_optimizer(options: Any, num_steps: int) -> optax.GradientTransformation:
    """Adam, with a warm-up, a schedule and clipping where the config asks for them.

    Args:
      options: The config's group ``optimizer``.
      num_steps: Length of the run, where the cosine schedule ends.

    Returns:
      The optax transformation.

    Example:
      >>> from vqjax.training.config import default_config
      >>> optimizer = build_optimizer(default_config().optimizer, num_steps=100)
    """
    if options.schedule == "cosine":
        decaying = optax.cosine_decay_schedule(options.learning_rate, max(1, num_steps - options.warmup_steps))
    else:
        decaying = optax.constant_schedule(options.learning_rate)
    warmup = optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps)
    learning_rate = optax.join_schedules([warmup, decaying], [options.warmup_steps])
    clipping = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    return optax.chain(*clipping, optax.adam(learning_rate))
