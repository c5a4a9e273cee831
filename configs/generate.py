"""Images of classes: a transformer over the tokens of a data set.

Arguments: masked (fills in masks as MaskGIT does, instead of one token after another), tiny (for two CPU cores), tokens
           (directory of vqjax tokens), tokenizer (run that made them), steps

Command:   python train.py --config=configs/cifar10.py:sonnet --workdir=runs/sonnet
           vqjax tokens --workdir=runs/sonnet --out=tokens/sonnet --flip
           python train.py --config=configs/generate.py:tiny --workdir=runs/generator
           vqjax sample --workdir=runs/generator --num=10000 --guidance=1.5
           python eval.py --real=CIFAR10_PNGS --fake=runs/generator/samples.npz --features=inception
Time:      about 50 minutes of two CPU cores (.7 s of CPU time a step); 2.5 minutes of an H200
Result:    6.44 bits per held-out token; frequencies of codes have 8.68, pairs of neighbors 7.67 (docs/generation.md)

Command:   python train.py --config=configs/generate.py:tokens=tokens/vqgan,tokenizer=runs/vqgan --workdir=runs/large
Time:      for one GPU; not run yet
"""

from ml_collections import ConfigDict

from vqjax.training.config import base_config


def get_config(
    *,
    masked: bool = False,
    tiny: bool = False,
    tokens: str = "tokens/sonnet",
    tokenizer: str = "runs/sonnet",
    steps: int | None = None,
) -> ConfigDict:
    config = base_config()
    config.batch_size = 64 if tiny else 256
    config.num_steps = (8_000 if tiny else 100_000) if steps is None else steps
    config.eval_every = config.checkpoint_every = max(1, config.num_steps // 8)
    config.data = dict(source="tokens", name=tokens)
    config.quantizer, config.loss = {}, None
    size = dict(dim=128, depth=4, heads=4) if tiny else dict(dim=768, depth=12, heads=12, dtype="bfloat16")
    config.model = dict(name="masked_transformer" if masked else "causal_transformer", dropout=0.1) | size
    config.task = dict(name="masked_tokens" if masked else "autoregressive", tokenizer=dict(workdir=tokenizer))
    config.task.ema_decay = 0.999
    config.optimizer = dict(name="adamw", learning_rate=1e-3 if tiny else 3e-4, b2=0.95, weight_decay=0.05)
    config.optimizer.schedule, config.optimizer.clip_norm = "cosine", 1.0
    config.optimizer.warmup_steps = config.num_steps // 40
    return config
