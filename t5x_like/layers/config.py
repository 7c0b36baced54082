"""What a block of a transformer can be: every choice is a field, and every combination is checked. Imports no JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from t5x_like.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Rates by place; each family has its own places, and 0 is off."""

    embedding: float = 0.0  # the sum of embeddings
    attention: float = 0.0  # attention probabilities
    residual: float = 0.0  # the output of each attention and MLP, before it is added
    hidden: float = 0.0  # inside the MLP
    final: float = 0.0  # after the last norm of a stack

    def __post_init__(self):
        for field in dataclasses.fields(self):
            rate = getattr(self, field.name)
            if not 0.0 <= rate < 1.0:
                raise UserError(f"model.dropout.{field.name}", f"got {rate}", "a number from 0 up to but not 1")

    @classmethod
    def t5(cls, rate: float) -> Dropout:
        return cls(rate, rate, rate, rate, rate)

    @classmethod
    def gpt2(cls, rate: float) -> Dropout:
        return cls(embedding=rate, attention=rate, residual=rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One kind of block, used by the encoder and the decoder alike."""

    d_model: int
    d_ff: int
    heads: int
    head_dim: int
    kv_heads: int = 0  # 0: as many as heads; fewer is grouped-query attention, 1 multi-query
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu_tanh"
    gated: bool = True  # activation(x W_gate) * (x W_up) instead of activation(x W_up)
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    positions: Literal["t5", "rope", "alibi", "learned", "sinusoidal", "none"] = "t5"
    buckets: int = 32  # T5's relative bias
    max_distance: int = 128  # T5's relative bias: all distances from here on share a bucket
    bias_per_layer: bool = False  # T5's relative bias: a table per layer (umT5) instead of one per stack
    rope_theta: float = 10_000.0
    bias: bool = False  # of linear maps and LayerNorms
    scale_attention: bool = True  # scores / sqrt(head_dim); T5 has it in the initialization instead
    qk_norm: bool = False  # RMSNorm of queries and keys over head_dim
    attention_soft_cap: float = 0.0
    attention_backend: Literal["auto", "tpu", "gpu", "cudnn", "xla"] = "auto"  # kernels where the device has them
    window: int = 0  # self-attention sees so many columns to each side (causal: before); 0 is all
    dropout: Dropout = Dropout()
    init: Literal["fan_in", "normal"] = "fan_in"
    init_std: float = 0.02  # of init "normal"
    depth_scaled_init: bool = False  # output projections / sqrt(2 layers), as GPT-2
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
    scan_layers: bool = True  # one compiled layer for all; off compiles each, which a CPU runs faster
    remat: Literal["none", "dots", "full"] = "none"  # what is not computed again: all, projections and attention, none

    def __post_init__(self):
        for name in ("d_model", "d_ff", "heads", "head_dim", "buckets", "max_distance"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}", f"got {getattr(self, name)}", "a whole number from 1")
        if self.kv_heads < 0 or self.heads % self.key_heads:
            divisors = ", ".join(str(n) for n in range(1, self.heads + 1) if self.heads % n == 0)
            raise UserError(
                "model.kv_heads",
                f"{self.kv_heads} does not divide model.heads = {self.heads}",
                f"0 (as many as heads) or one of {divisors}",
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError("model.head_dim", f"got {self.head_dim} with model.positions=rope", "an even number")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise UserError("model.d_model", f"got {self.d_model} with model.positions=sinusoidal", "an even number")
        if self.positions == "t5" and (self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2):
            raise UserError(
                "model.buckets",
                f"got {self.buckets} with model.max_distance = {self.max_distance}",
                "a multiple of 4, less than twice model.max_distance",
                "model.buckets=32 model.max_distance=128",
            )
        if self.bias_per_layer and self.positions != "t5":
            raise UserError("model.bias_per_layer", f"on with model.positions={self.positions}", "model.positions=t5")
        if self.rope_theta <= 0:
            raise UserError("model.rope_theta", f"got {self.rope_theta}", "above 0")
        for name in ("attention_soft_cap", "window", "norm_eps", "init_std"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}", f"got {getattr(self, name)}", "0 or more")

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads
