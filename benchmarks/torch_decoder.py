"""The model of ``step.py`` in PyTorch, eager, with what PyTorch offers for it.

``scaled_dot_product_attention``, ``cross_entropy``, fused AdamW, ``clip_grad_norm_``, ``RMSNorm``; queries, keys and
values in one product, gate and up projection in another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sizes import Decoder as Sizes
from torch import nn
from torch.nn import functional
from torch_step import TorchStep


def rotate(x_BHTN: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    one, other = x_BHTN.chunk(2, dim=-1)
    return torch.cat([one * cosines - other * sines, other * cosines + one * sines], dim=-1)


class Block(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        inner = sizes.heads * sizes.head_size
        self.heads, self.head_size = sizes.heads, sizes.head_size
        self.attention_norm = nn.RMSNorm(sizes.width, eps=Sizes.NORM_EPSILON)
        self.query_key_value = nn.Linear(sizes.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, sizes.width, bias=False)
        self.mlp_norm = nn.RMSNorm(sizes.width, eps=Sizes.NORM_EPSILON)
        self.gate_up = nn.Linear(sizes.width, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x_BTD: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        projected = self.query_key_value(self.attention_norm(x_BTD)).view(B, T, 3, self.heads, self.head_size)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.mlp_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.down(functional.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.final_norm = nn.RMSNorm(sizes.width, eps=Sizes.NORM_EPSILON)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        N = sizes.head_size
        frequencies = Sizes.ROPE_THETA ** (-torch.arange(0, N, 2) / N)
        angles = torch.arange(sizes.length)[:, None] * frequencies
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=Sizes.INIT_STD)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cosines, self.sines)
        return self.head(self.final_norm(x_BTD))


class Contender(TorchStep):
    """What ``worker.py`` drives."""

    def __init__(self, sizes: Sizes, form: str):
        del form  # there is one: eager
        torch.manual_seed(0)
        self.sizes = sizes
        super().__init__(Decoder(sizes))

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        whole = torch.from_numpy(rows).long()
        logits = self.model(whole[:, :-1])
        return functional.cross_entropy(logits.view(-1, self.sizes.vocabulary), whole[:, 1:].reshape(-1))

    def put(self, parameters: dict[str, Any]) -> None:
        """From the names of the plain program."""
        layers, D = parameters["layers"], self.sizes.width
        named = {
            "embedding.weight": parameters["embedding"],
            "head.weight": parameters["head"].T,
            "final_norm.weight": parameters["final_norm"],
        }
        for i in range(self.sizes.layers):
            one = {name: array[i] for name, array in layers.items()}
            named |= {
                f"blocks.{i}.attention_norm.weight": one["attention_norm"],
                f"blocks.{i}.mlp_norm.weight": one["mlp_norm"],
                f"blocks.{i}.query_key_value.weight": np.concatenate(
                    [one[name].reshape(D, -1).T for name in ("query", "key", "value")]
                ),
                f"blocks.{i}.out.weight": one["out"].reshape(-1, D).T,
                f"blocks.{i}.gate_up.weight": np.concatenate([one["gate"].T, one["up"].T]),
                f"blocks.{i}.down.weight": one["down"].T,
            }
        buffers = {name: tensor for name, tensor in self.model.state_dict().items() if name in ("cosines", "sines")}
        self.model.load_state_dict(buffers | {name: torch.tensor(array) for name, array in named.items()})
