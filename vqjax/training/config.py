"""The trainer's configuration: every field with its meaning, and variants by argument."""

import difflib
import functools
from collections.abc import Iterator

from ml_collections import ConfigDict, config_dict

from vqjax.errors import UserError

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "whole numbers in brackets, such as '(8, 5)'",
}
"""What to write for a field of a type."""


def default_config() -> ConfigDict:
    """Every field there is, with the values that a config leaves alone.

    Returns:
      A config without a data source or a number of steps; the files under ``configs/`` set those.

    Example:
      >>> default_config().quantizer.estimator
      'rotation'
    """
    config = ConfigDict()
    config.seed = 0
    config.num_steps = config_dict.placeholder(int)  # optimizer steps of the whole run
    config.batch_size = 128  # images per step, over all devices
    config.log_every = 100  # steps between lines of metrics.jsonl
    config.eval_every = 1000  # steps between evaluations on the held-out split
    config.checkpoint_every = 1000  # steps between checkpoints; one is always written at the end
    config.keep_checkpoints = 2  # newest checkpoints to keep
    config.gradient_accumulation = 1  # parts of a batch that encoder and decoder see in turn, to save memory
    config.nonfinite = "stop"  # at a loss or gradient that is no finite number; or skip: go on without that step
    config.steps_per_dispatch = 0  # steps per call of the compiled program; 0: 1 on CPUs, 20 elsewhere
    config.tensorboard = True  # scalars and pictures under WORKDIR/tensorboard
    config.wandb = False  # the same to Weights & Biases

    config.data = ConfigDict()
    config.data.source = config_dict.placeholder(str)  # tfds, photos, image_folder or arrays
    config.data.name = ""  # dataset name (tfds), directory (image_folder) or file (arrays)
    config.data.image_size = 32  # height and width in pixels, after resizing and cropping
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.eval_fraction = 0.1  # of the images, held out where the source has no evaluation split
    config.data.flip = False  # random horizontal flips
    config.data.crop_padding = config_dict.placeholder(int)  # pixels of reflection padding before a random crop
    config.data.resident_limit_mb = 1024  # datasets up to this size live on the device, others are streamed

    config.model = ConfigDict()
    config.model.name = "residual"  # residual (the CIFAR-10 study) or sonnet
    config.model.width = 256  # channels of the latent grid
    config.model.num_residual_blocks = 2
    config.model.num_scalings = 2  # each halves height and width; sonnet has 2
    config.model.dtype = "float32"  # of the convolutions; or bfloat16, with parameters and quantizer in float32
    config.model.precision = "default"  # of float32 products, where dtype is that: TF32 on GPUs; float32 is exact
    config.model.code_dim = config_dict.placeholder(int)  # 1x1 convolution to this dimension; None: width, without one

    config.quantizer = ConfigDict()
    config.quantizer.name = "vector"  # or another of vqjax/quantizers/registry.py, which says what each reads of these
    config.quantizer.num_codes = 1024  # of each codebook
    config.quantizer.metric = "euclidean"  # or cosine
    config.quantizer.estimator = "rotation"
    config.quantizer.codebook_update = "ema"  # ema, gradient or none
    config.quantizer.decay = 0.99
    config.quantizer.commitment_weight = config_dict.placeholder(float)  # None: the quantizer's own, 0.25 for vector
    config.quantizer.codebook_weight = config_dict.placeholder(float)  # only for codes learned by gradient; 1 if None
    config.quantizer.ema_smoothing = 0.0  # Laplace smoothing of codebook_update="ema"
    config.quantizer.code_dim = config_dict.placeholder(int)  # project to this dimension for the lookup; None: do not
    config.quantizer.heads = 1  # tokens per position
    config.quantizer.separate_codebooks = False  # one codebook per head
    config.quantizer.sampling_temperature = 0.0  # above 0: draw codes in training instead of taking the nearest
    config.quantizer.synchronization = 0.0  # weight of the task's gradient on codes learned by gradient
    config.quantizer.codebook_transform = ""  # linear (SimVQ), learned_affine or running_affine
    config.quantizer.orthogonality_weight = 0.0  # of regularizers, see vqjax/functional/regularizers.py
    config.quantizer.diversity_weight = 0.0
    config.quantizer.entropy_weight = config_dict.placeholder(float)  # None: 0.1 where codes are bits, else 0
    config.quantizer.dead_code_threshold = 0.01  # fraction of the average use
    config.quantizer.replace_dead_codes = False
    config.quantizer.replace_unused_after = config_dict.placeholder(int)  # batches without a token
    config.quantizer.kmeans_init = False  # start the codebook from clusters of the untrained encoder's vectors
    config.quantizer.codebook_shards = 1  # devices that divide the codes among them, of vector
    config.quantizer.search = "chunks"  # or hopper, a kernel for that generation of GPUs, on one device; of vector
    config.quantizer.num_quantizers = 4  # levels of residual quantizers
    config.quantizer.gradient = "total"  # across all levels or scales at once; or per_level, per_scale
    config.quantizer.dropout = 0.0  # probability with which an image of a batch keeps its first levels or scales only
    config.quantizer.beam_size = 1  # beams of the search over levels; 1 takes the nearest code in each
    config.quantizer.shared_codebook = config_dict.placeholder(bool)  # one for all levels (None: no) or scales (yes)
    config.quantizer.implicit_codebooks = False  # adapt codebooks to the levels above (QINCo)
    config.quantizer.groups = 2  # of features, of grouped quantizers
    config.quantizer.levels = (8, 5, 5, 5)  # values of each feature, of scalar quantizers
    config.quantizer.bound = "asymmetric"  # of fsq; or paper, symmetric
    config.quantizer.noise_dropout = 0.0  # probability of noise instead of a code in training, of fsq
    config.quantizer.bits = 10  # of codes that are signs or bits
    config.quantizer.inverse_temperature = config_dict.placeholder(float)  # of lfq's and bsq's entropies; None: 100
    config.quantizer.free_nats = config_dict.placeholder(float)  # that binary_mapper's bits may tell; None: log(2)
    config.quantizer.num_codebooks = 1  # groups of features with an index each, where codes are not learned
    config.quantizer.scales = (1, 2, 4, 8)  # sides of the grids of a multi-scale quantizer; the last is the latent's

    config.loss = ConfigDict()
    config.loss.divide_by_variance = False  # divide the reconstruction error by the variance of the training pixels
    config.loss.encoder_gradient = "estimator"  # or from the decoder's loss: hessian, exact (a second decoder pass)

    config.alternating = ConfigDict()
    config.alternating.num_steps = 0  # steps on a codebook learned by gradient, by SGD, before each step on the task
    config.alternating.learning_rate = 1.0
    config.alternating.momentum = 0.9

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4  # of Adam
    config.optimizer.schedule = "constant"  # or cosine, to zero at num_steps
    config.optimizer.warmup_steps = 0  # linear, from zero
    config.optimizer.clip_norm = 0.0  # largest norm of the gradient; 0: no clipping
    return config


def parse_variant(argument: str | None, **defaults: bool | int | float | str) -> ConfigDict:
    """Reads the text after the colon of ``--config=configs/X.py:codes=512,sonnet``.

    Args:
      argument: Comma-separated ``name=value`` pairs; a lone ``name`` sets a boolean.
      **defaults: Every allowed name, with the value it has when left out, which also gives its type.

    Returns:
      The defaults, overridden.

    Raises:
      UserError: An unknown name, or a value of another type.

    Example:
      >>> parse_variant("codes=512,sonnet", codes=1024, beta=0.25, sonnet=False).to_dict()
      {'beta': 0.25, 'codes': 512, 'sonnet': True}
    """
    values = dict(defaults)
    for part in filter(None, (argument or "").split(",")):
        name, _, text = part.partition("=")
        if name not in defaults:
            raise UserError(f"config argument {name!r} is unknown{nearest_name(name, defaults)}")
        values[name] = _parse_value(name, text, type(defaults[name]))
    return ConfigDict(dict(sorted(values.items())))


def nearest_name(name: str, allowed) -> str:
    """The end of an error message: the nearest allowed name, or all of them.

    Args:
      name: What was given.
      allowed: What may be given.

    Returns:
      A half sentence that starts with a colon.

    Example:
      >>> nearest_name("num_code", ["num_codes", "decay"])
      ": did you mean 'num_codes'?"
    """
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f": did you mean {matches[0]!r}?" if matches else f": use one of {', '.join(sorted(allowed))}."


def field_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields of a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _parse_value(name: str, text: str, kind: type) -> bool | int | float | str:
    if kind is bool:
        if text.lower() in ("", "true", "1"):
            return True
        if text.lower() in ("false", "0"):
            return False
        raise UserError(f"config argument {name}={text!r} is not allowed: use {name}=true or {name}=false.")
    try:
        if text:
            return kind(text)
    except ValueError:
        pass
    raise UserError(f"config argument {name}={text!r} is not allowed: use a value of type {kind.__name__}.")


def field_type(config: ConfigDict, name: str) -> type:
    """The type of a field by its dotted name, also where its value is None."""
    *groups, field = name.split(".")
    return functools.reduce(getattr, groups, config).get_type(field)
