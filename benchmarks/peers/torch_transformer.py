"""The causal transformer over tokens in PyTorch, and the loop that draws images with keys and values kept."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torch_device import torch_device
from vqjax.models.transformer import CausalTransformer, rotary_table


class Block(nn.Module):
    """Attention to what was seen, and SwiGLU, each behind an RMS norm and added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim, 1e-5), nn.RMSNorm(dim, 1e-5)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """All positions of each image, ``[batch, positions, dim]``."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)
        query, key = _rotated(query, angles), _rotated(key, angles)
        return self._behind(x, F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2))

    def step(
        self,
        x: torch.Tensor,
        angles: torch.Tensor,
        position: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """One position of each image, whose keys and values join those before, ``[batch, heads, positions, dim]``.

        Without a mask over all positions, the last of those that are given is this one.
        """
        query, key, value = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, -1).unbind(1)
        keys.index_copy_(2, position, _rotated(key, angles)[:, :, None])
        values.index_copy_(2, position, value[:, :, None])
        query = _rotated(query, angles)[:, :, None]
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self._behind(x, attended)

    def _behind(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.out(attended.reshape(x.shape)))
        y = self.mlp_norm(x)
        return x + self.drop(self.down(F.silu(self.gate(y)) * self.up(y)))


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles.unbind(-1)
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1).flatten(-2)


class Transformer(nn.Module):
    """The network.

    Args:
      like: The model whose sizes it has.
      hidden: Hidden features of a block.
    """

    def __init__(self, like: CausalTransformer, hidden: int) -> None:
        super().__init__()
        self.like, dim = like, like.dim
        self.token_table = nn.Embedding(like.num_codes, dim)
        self.class_table = nn.Embedding(like.num_classes + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, like.heads, hidden, like.dropout) for _ in range(like.depth))
        self.drop = nn.Dropout(like.dropout)
        self.norm, self.head = nn.RMSNorm(dim, 1e-5), nn.Linear(dim, like.num_codes, bias=False)
        self.register_buffer("table", torch.from_numpy(rotary_table(like.grid, dim // like.heads)))

    def forward(self, tokens: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the logits of each token, by the class and the tokens before it."""
        x = self.drop(torch.cat([self.class_table(classes)[:, None], self.token_table(tokens[:, :-1])], 1))
        for block in self.blocks:
            x = block(x, self.table)
        return self.head(self.norm(x))

    def draw(self, classes: torch.Tensor, *, greedy: bool = False, static: bool = False) -> torch.Tensor:
        """Draw the tokens of images one after another.

        Args:
          classes: Class of each image.
          greedy: The likeliest ones.
          static: With shapes that are the same at each position, as compiled blocks need them.
        """
        like = self.like
        shape = (like.depth, 2, len(classes), like.heads, like.positions, like.dim // like.heads)
        seen, x, tokens = self.table.new_zeros(shape), self.class_table(classes), []
        numbers = torch.arange(like.positions, device=classes.device)
        for position in range(like.positions):
            place, mask = numbers[position : position + 1], (numbers <= position)[None] if static else None
            for block, (keys, values) in zip(self.blocks, seen, strict=True):
                if not static:
                    keys, values = keys[:, :, : position + 1], values[:, :, : position + 1]
                x = block.step(x, self.table[position], place, keys, values, mask)
            logits = self.head(self.norm(x))
            drawn = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1)[:, 0]
            tokens.append(drawn)
            x = self.token_table(drawn)
        return torch.stack(tokens, 1)


def torch_transformer(like: CausalTransformer, params: Mapping[str, Any]) -> Transformer:
    """Return the network with given parameters.

    Args:
      like: The model.
      params: Its parameters.
    """
    hidden = params["blocks_0"]["gate"]["kernel"].shape[1]
    network = Transformer(like, hidden).eval()
    state = {"table": network.table}
    for path, value in _leaves(params):
        *modules, leaf = path.replace("blocks_", "blocks.").split("/")
        array = np.asarray(value)
        state[".".join([*modules, "weight"])] = torch.from_numpy((array.T if leaf == "kernel" else array).copy())
    network.load_state_dict(state)
    return network


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def torch_sampler(like: CausalTransformer, params: Mapping[str, Any], classes: np.ndarray, compiled: bool) -> Callable:
    """Return what draws the tokens of a batch.

    Args:
      like: The model.
      params: Its parameters.
      classes: Class of each image.
      compiled: With ``torch.compile`` of the blocks.
    """
    network = torch_transformer(like, params)
    device = torch_device()
    network, given = network.to(device), torch.from_numpy(classes).to(device)
    if compiled:
        for block in network.blocks:
            block.step = torch.compile(block.step)

    def run() -> None:
        with torch.inference_mode():
            network.draw(given, static=compiled).cpu()

    return run
