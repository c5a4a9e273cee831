"""Published tokenizers beside their originals, with the same random weights.

Run with VQJAX_ORIGINALS=DIR, a directory with clones of cfifty/rotation_trick, TencentARC/SEED-Voken,
google-research/maskgit and CompVis/taming-transformers. What the originals return is also recorded, for the tests that
run without them.
"""

import argparse
import importlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from helpers.goldens import assert_equal
from helpers.tokenizers import CONFIG, ibq_state, images, magvit_entries, rotation_trick_state

torch = pytest.importorskip("torch")
pytest.importorskip("einops")

ORIGINALS = os.environ.get("VQJAX_ORIGINALS")
RECORDED = Path(__file__).parents[1] / "importing" / "recorded"


@pytest.fixture(autouse=True)
def originals(monkeypatch):
    """The clones as packages, and stand-ins of what they import without need."""
    if ORIGINALS is None:
        pytest.skip("VQJAX_ORIGINALS names no directory of the originals")
    before = {*sys.modules}
    for name in ("taming-transformers", "maskgit"):
        monkeypatch.syspath_prepend(str(Path(ORIGINALS) / name))
    # Two of them have a package of this name.
    monkeypatch.setitem(sys.modules, "src", types.ModuleType("src"))
    sys.modules["src"].__path__ = [str(Path(ORIGINALS) / name / "src") for name in ("rotation_trick", "SEED-Voken")]
    for name, entry in (("pyprojroot", "here"), ("diffusers.models.autoencoders.vae", "Encoder")):
        parts = name.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(parts[i]))
        setattr(sys.modules[name], entry, lambda: Path(ORIGINALS))
    sys.modules["diffusers.models.autoencoders.vae"].Decoder = None
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("src", "taming", "maskgit"):
            del sys.modules[name]


def load(module, arrays):
    module.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()}, strict=True)
    return module.eval()


def channels_first(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def rotation_trick(codebook):
    original = importlib.import_module("src.models.vq_vae")
    encoder, decoder = original.Encoder, original.Decoder
    original.Encoder, original.Decoder = (
        lambda kind=kind, **_: kind(**CONFIG["ddconfig"]) for kind in (encoder, decoder)
    )
    original.get_model_params = lambda dataset, f: (3, 8, 8, 4, 16)
    args = argparse.Namespace(dataset="imagenet", f=8, codebook=codebook, commit_weight=1.0)
    arrays = {
        key.removeprefix("module."): value for key, value in rotation_trick_state(cosine=codebook == "cosine").items()
    }
    model = load(original.VQVAE(args), arrays)
    mean, std = np.float32([0.4815, 0.4578, 0.4082]), np.float32([0.2686, 0.2613, 0.2758])
    x = channels_first(((images() + 1) / 2 - mean) / std)
    reconstruction = model(x, return_rec=True)[2]
    # As images in [-1, 1].
    return 2 * (
        reconstruction * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    ) - 1, model.get_codes(x)


def ibq():
    networks = importlib.import_module("src.IBQ.modules.diffusionmodules.model")
    quantize = importlib.import_module("src.IBQ.modules.vqvae.quantize")
    model = torch.nn.Module()
    model.encoder, model.decoder = networks.Encoder(**CONFIG["ddconfig"]), networks.Decoder(**CONFIG["ddconfig"])
    model.quant_conv, model.post_quant_conv = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
    model.quantize = quantize.IndexPropagationQuantize(16, 4)
    load(model, ibq_state())
    quantized, _, (_, _, indices) = model.quantize(model.quant_conv(model.encoder(channels_first(images()))))
    return model.decoder(model.post_quant_conv(quantized)), indices.reshape(2, 8, 8)


def open_magvit2():
    networks = importlib.import_module("src.Open_MAGVIT2.modules.diffusionmodules.improved_model")
    quantize = importlib.import_module("src.Open_MAGVIT2.modules.vqvae.lookup_free_quantize")
    sizes = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 5, "resolution": 16}
    model = torch.nn.Module()
    model.encoder, model.decoder = (
        kind(**sizes, in_channels=3, out_ch=3) for kind in (networks.Encoder, networks.Decoder)
    )
    load(model, magvit_entries(variant="open_magvit2"))
    quantized, _, indices = quantize.LFQ(dim=5, codebook_size=32).eval()(model.encoder(channels_first(images())))
    return model.decoder(quantized), indices.reshape(2, 8, 8)


def maskgit():
    import flax
    import ml_collections

    original = importlib.import_module("maskgit.nets.vqgan_tokenizer")
    sizes = {"filters": 32, "channel_multipliers": (1, 2), "num_res_blocks": 2, "embedding_dim": 4, "codebook_size": 16}
    options = {"quantizer": "vq", "conv_downsample": False, "activation_fn": "swish", "norm_type": "GN"}
    model = original.VQVAE(ml_collections.ConfigDict({"vqvae": sizes | options}), train=False)
    variables = {"params": flax.traverse_util.unflatten_dict(magvit_entries(variant="maskgit"), sep=".")}
    indices = model.apply(variables, (images() + 1) / 2, method="encode_to_indices")
    reconstruction = 2 * model.apply(variables, indices, method="decode_from_indices") - 1
    return (torch.tensor(np.asarray(x)) for x in (reconstruction.transpose(0, 3, 1, 2), indices))


RUNS = {
    "rotation_trick_euclidean": lambda: rotation_trick("euclidean"),
    "rotation_trick_cosine": lambda: rotation_trick("cosine"),
    "ibq": ibq,
    "open_magvit2": open_magvit2,
    "maskgit": maskgit,
}


@pytest.mark.parametrize("name", RUNS)
def test_what_is_recorded_is_what_the_original_returns(name):
    with torch.no_grad():
        reconstruction, indices = RUNS[name]()
    path = RECORDED / f"{name}.npz"
    if not path.exists():
        np.savez(path, reconstruction=reconstruction.numpy(), indices=indices.numpy())
        pytest.fail(f"{path} did not exist, and is written now: run again")
    recorded = np.load(path)
    assert_equal(reconstruction.numpy(), recorded["reconstruction"])
    np.testing.assert_array_equal(indices.numpy(), recorded["indices"])
