"""Training steps of both transformers over tokens in PyTorch, the masked one as in MaskGIT."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torch_device import torch_device
from benchmarks.peers.torch_transformer import torch_transformer
from vqjax.models.transformer import CausalTransformer, MaskedTransformer

_CLASS_DROPOUT, _LABEL_SMOOTHING, _EMA_DECAY = 0.1, 0.1, 0.999
_EPSILON = 1e-12


class MaskedBlock(nn.Module):
    """Attention and a two-layer network, each with a layer norm behind its sum with its input."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        # One product for queries, keys and values, as PyTorch's own attention has it.
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp_1, self.mlp_2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, _EPSILON), nn.LayerNorm(dim, _EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All positions of each image."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.drop(self.out(attended)))
        return self.mlp_norm(x + self.drop(self.mlp_2(F.gelu(self.mlp_1(x), approximate="tanh"))))


class Masked(nn.Module):
    """The transformer that fills in masks.

    Args:
      like: The model whose sizes it has.
    """

    def __init__(self, like: MaskedTransformer) -> None:
        super().__init__()
        self.like, dim = like, like.dim
        self.token_table = nn.Embedding(like.num_codes + 1 + like.num_classes + 1, dim)
        nn.init.trunc_normal_(self.token_table.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(1 + like.positions, dim))
        self.norm, self.drop = nn.LayerNorm(dim, _EPSILON), nn.Dropout(like.dropout)
        hidden = like.mlp_dim or 4 * dim
        self.blocks = nn.ModuleList(MaskedBlock(dim, like.heads, hidden, like.dropout) for _ in range(like.depth))
        self.head, self.head_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, _EPSILON)
        self.bias = nn.Parameter(torch.zeros(like.num_codes))

    def forward(self, tokens: torch.Tensor, masked: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the logits of each token, by the class and the tokens that are not masked."""
        codes = self.like.num_codes
        words = torch.cat([codes + 1 + classes[:, None], torch.where(masked, codes, tokens)], 1)
        x = self.drop(self.norm(self.token_table(words) + self.positions))
        for block in self.blocks:
            x = block(x)
        x = self.head_norm(F.gelu(self.head(x[:, 1:]), approximate="tanh"))
        return x @ self.token_table.weight[:codes].T + self.bias


def torch_masked(like: MaskedTransformer, params: Mapping[str, Any]) -> Masked:
    """Return the masked transformer with given parameters.

    Args:
      like: The model.
      params: Its parameters.
    """
    network = Masked(like).eval()
    state = {"positions": params["positions"], "bias": params["bias"]}
    state["token_table.weight"] = params["token_table"]["embedding"]
    for name, group in params.items():
        if name.startswith("blocks_"):
            parts = [group[part] for part in ("query", "key", "value")]
            joined = {kind: np.concatenate([part[kind] for part in parts], -1) for kind in ("kernel", "bias")}
            group = {key: value for key, value in group.items() if key not in ("query", "key", "value")}
            for part, leaves in (group | {"qkv": joined}).items():
                _add(state, f"{name.replace('_', '.')}.{part}", leaves)
        elif name not in ("positions", "bias", "token_table"):
            _add(state, name, group)
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return network


def _add(state: dict[str, Any], module: str, leaves: Mapping[str, Any]) -> None:
    for kind, value in leaves.items():
        state[f"{module}.{'bias' if kind == 'bias' else 'weight'}"] = value.T if kind == "kernel" else value


def torch_tokens_step(
    like: CausalTransformer | MaskedTransformer,
    params: Mapping[str, Any],
    tokens: np.ndarray,
    classes: np.ndarray,
    compiled: bool,
    bfloat16: bool,
) -> Callable[[], None]:
    """One step of AdamW with clipping and a moving average of the parameters, on tokens that are on the device already.

    Args:
      like: The model.
      params: Its parameters.
      tokens: Codes ``[batch, positions]``.
      classes: Class of each image.
      compiled: With ``torch.compile``.
      bfloat16: The network in bfloat16 under autocast.

    Returns:
      A function that returns when the step is done.
    """
    device = torch_device()
    is_masked = isinstance(like, MaskedTransformer)
    network = (torch_masked if is_masked else torch_transformer)(like, params).to(device).train()
    trained = list(network.parameters())
    averages = [parameter.detach().clone() for parameter in trained]
    decayed = [{"params": [p for p in trained if p.ndim > 1]}]
    decayed.append({"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(decayed, 1e-3, (0.9, 0.95), weight_decay=0.05, fused=True)
    codes, labels = (torch.tensor(x, device=device).long() for x in (tokens, classes))

    def loss_of(codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen = torch.where(torch.rand(labels.shape, device=device) < _CLASS_DROPOUT, like.num_classes, labels)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            if not is_masked:
                return F.cross_entropy(network(codes, seen).float().flatten(0, 1), codes.flatten())
            share = torch.cos(math.pi / 2 * torch.rand(len(codes), device=device))
            number = (share * codes.shape[1]).ceil().clamp(1, codes.shape[1])
            masked = torch.rand(codes.shape, device=device).argsort(1).argsort(1) < number[:, None]
            logits = network(codes, masked, seen).float()
        of_tokens = F.cross_entropy(
            logits.flatten(0, 1), codes.flatten(), reduction="none", label_smoothing=_LABEL_SMOOTHING
        )
        return ((of_tokens.view(masked.shape) * masked).sum(1) / masked.sum(1)).mean()

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_function(codes, labels).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, trained, 1 - _EMA_DECAY)
        if device == "cuda":
            torch.cuda.synchronize()

    return step
