"""State dicts of published tokenizers, at a size for tests."""

import numpy as np

CONFIG = {
    "ddconfig": {
        "double_z": False,
        "z_channels": 8,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.0,
    },
    "n_embed": 16,
    "embed_dim": 4,
}


def state_dict(seed=0):
    """The entries of taming's VQModel of that config, listed here by hand."""
    random, arrays = np.random.default_rng(seed), {}

    def add(name, *shape):
        arrays[f"{name}.weight"] = random.normal(size=shape).astype(np.float32) / 8
        arrays[f"{name}.bias"] = random.normal(size=shape[:1]).astype(np.float32) / 8

    def block(name, inputs, outputs):
        add(f"{name}.norm1", inputs)
        add(f"{name}.conv1", outputs, inputs, 3, 3)
        add(f"{name}.norm2", outputs)
        add(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            add(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def attention(name, channels):
        add(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", channels, channels, 1, 1)

    def middle(name):
        block(f"{name}.block_1", 64, 64)
        attention(f"{name}.attn_1", 64)
        block(f"{name}.block_2", 64, 64)

    add("encoder.conv_in", 32, 3, 3, 3)
    block("encoder.down.0.block.0", 32, 32)
    add("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    block("encoder.down.1.block.0", 32, 64)
    attention("encoder.down.1.attn.0", 64)
    middle("encoder.mid")
    add("encoder.norm_out", 64)
    add("encoder.conv_out", 8, 64, 3, 3)
    add("decoder.conv_in", 64, 8, 3, 3)
    middle("decoder.mid")
    for i in range(2):
        block(f"decoder.up.1.block.{i}", 64, 64)
        attention(f"decoder.up.1.attn.{i}", 64)
        block(f"decoder.up.0.block.{i}", 64 if i == 0 else 32, 32)
    add("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    add("decoder.norm_out", 32)
    add("decoder.conv_out", 3, 32, 3, 3)
    add("quant_conv", 4, 8, 1, 1)
    add("post_quant_conv", 8, 4, 1, 1)
    arrays["quantize.embedding.weight"] = random.normal(size=(16, 4)).astype(np.float32)
    return arrays


def rotation_trick_state(*, cosine):
    """The entries of the official VQ-VAE of the rotation trick, around the same encoder and decoder."""
    arrays = state_dict()
    codes = arrays.pop("quantize.embedding.weight")
    for name, there in (("quant_conv", "pre_quant_proj.0"), ("post_quant_conv", "post_quant_proj")):
        arrays[f"{there}.weight"] = arrays.pop(f"{name}.weight")[:, :, 0, 0]
        arrays[f"{there}.bias"] = arrays.pop(f"{name}.bias")
    counts = np.linspace(1, 2, 16, dtype=np.float32)
    if not cosine:
        # Around the latents, so that several codes are nearest to some.
        codes = codes / 8 + np.float32([-0.34, 0, 0.07, 0.28])
    else:
        arrays["pre_quant_proj.1.weight"] = np.linspace(0.5, 1.5, 4, dtype=np.float32)
        arrays["pre_quant_proj.1.bias"] = np.linspace(-0.5, 0.5, 4, dtype=np.float32)
        codes = codes / np.linalg.norm(codes, axis=1, keepdims=True)
        # Two that no image has used for long.
        codes[[3, 12]], counts[[3, 12]] = 0, 0
    buffers = {"initted": np.ones(1), "cluster_size": counts[None], "embed_avg": (codes * counts[:, None])[None]}
    arrays |= {f"vq._codebook.{name}": value for name, value in (buffers | {"embed": codes[None]}).items()}
    return {f"module.{key}": value for key, value in arrays.items()}


def images(seed=1):
    """Two images in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def ibq_state():
    """The same entries, with the mean of the latents at zero, so that several codes have the largest inner product."""
    arrays = state_dict()
    arrays["quant_conv.bias"] += np.float32([0.37, 0, -0.08, -0.3])
    return arrays


def magvit_entries(*, variant):
    """The entries of a tokenizer of Open-MAGVIT2 or MaskGIT, of levels of 32 and 64 channels."""
    shapes = {}
    if variant == "open_magvit2":

        def add(name, *shape, bias=True):
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]

        def block(name, inputs, outputs):
            add(f"{name}.norm1", inputs)
            add(f"{name}.conv1", outputs, inputs, 3, 3, bias=False)
            add(f"{name}.norm2", outputs)
            add(f"{name}.conv2", outputs, outputs, 3, 3, bias=False)
            if inputs != outputs:
                add(f"{name}.nin_shortcut", outputs, inputs, 1, 1, bias=False)

        add("encoder.conv_in", 32, 3, 3, 3, bias=False)
        block("encoder.down.0.block.0", 32, 32)
        add("encoder.down.0.downsample", 32, 32, 3, 3)
        block("encoder.down.1.block.0", 32, 64)
        block("encoder.mid_block.0", 64, 64)
        add("encoder.norm_out", 64)
        add("encoder.conv_out", 5, 64, 1, 1)
        add("decoder.conv_in", 64, 5, 3, 3)
        block("decoder.mid_block.0", 64, 64)
        block("decoder.up.1.block.0", 64, 64)
        add("decoder.up.1.upsample.conv1", 256, 64, 3, 3)
        block("decoder.up.0.block.0", 64, 32)
        for level in range(2):
            add(f"decoder.adaptive.{level}.gamma", 64, 5)
            add(f"decoder.adaptive.{level}.beta", 64, 5)
        add("decoder.norm_out", 32)
        add("decoder.conv_out", 3, 32, 3, 3)
    else:

        def conv(name, *shape, bias=True):
            shapes[f"{name}.kernel"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[-1:]

        def norm(name, features):
            shapes.update({f"{name}.{leaf}": (features,) for leaf in ("scale", "bias")})

        def block(name, inputs, outputs):
            norm(f"{name}.GroupNorm_0", inputs)
            conv(f"{name}.Conv_0", 3, 3, inputs, outputs, bias=False)
            norm(f"{name}.GroupNorm_1", outputs)
            conv(f"{name}.Conv_1", 3, 3, outputs, outputs, bias=False)
            if inputs != outputs:
                conv(f"{name}.Conv_2", 1, 1, outputs, outputs, bias=False)

        conv("encoder.Conv_0", 3, 3, 3, 32, bias=False)
        for i, (inputs, outputs) in enumerate([(32, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 64)]):
            block(f"encoder.ResBlock_{i}", inputs, outputs)
        norm("encoder.GroupNorm_0", 64)
        conv("encoder.Conv_1", 1, 1, 64, 4)
        conv("decoder.Conv_0", 3, 3, 4, 64)
        for i, (inputs, outputs) in enumerate([(64, 64), (64, 64), (64, 64), (64, 64), (64, 32), (32, 32)]):
            block(f"decoder.ResBlock_{i}", inputs, outputs)
        conv("decoder.Conv_1", 3, 3, 64, 64)
        norm("decoder.GroupNorm_0", 32)
        conv("decoder.Conv_2", 3, 3, 32, 3)
        shapes["quantizer.codebook"] = (16, 4)
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    if variant == "maskgit":
        # Around the latents, so that several codes are nearest to some.
        arrays["quantizer.codebook"] = arrays["quantizer.codebook"] / 2 + np.float32([-0.12, -0.03, -0.1, 0.07])
    return arrays
