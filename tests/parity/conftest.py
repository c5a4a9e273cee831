"""The PyTorch side of the comparisons, which run where torch and vector-quantize-pytorch are installed."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='comparisons need pip install "vqjax[parity]"')
with warnings.catch_warnings():
    # torch warns of its own deprecations while the peer is imported.
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("vector_quantize_pytorch", reason='comparisons need pip install "vqjax[parity]"')


@pytest.fixture(autouse=True)
def ignore_warnings_of_torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


@pytest.fixture
def make_peer():
    """Builds a peer in training mode from injected codes, without projection unless asked for."""

    def build(codes, *, dim=None, **arguments):
        codes = np.asarray(codes, np.float32)
        codes = codes if codes.ndim == 3 else codes[None]
        vq = peer.VectorQuantize(dim=dim or codes.shape[-1], codebook_size=codes.shape[-2], **arguments)
        with torch.no_grad():
            for name in ("embed", "embed_avg"):
                getattr(vq._codebook, name).copy_(torch.tensor(codes))
        return vq.train()

    return build
