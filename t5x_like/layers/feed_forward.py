"""The MLP of a block, plain or gated."""

from __future__ import annotations

import jax
from flax import nnx

from t5x_like.layers.activations import ACTIVATIONS
from t5x_like.layers.config import BlockConfig
from t5x_like.layers.dropout import dropout
from t5x_like.layers.linear import Linear
from t5x_like.layers.param import fan_in, normal
from t5x_like.sharding.mesh import constrain


class FeedForward(nnx.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: BlockConfig, output_scale: float = 1.0):
        D, F, fans = config.d_model, config.d_ff, config.init == "fan_in"
        init = fan_in(D) if fans else normal(config.init_std)
        output = normal((F**-0.5 if fans else config.init_std) * output_scale)
        self.config = config
        self.gate = Linear(D, F, ("embed", "mlp"), init, config.bias) if config.gated else None
        self.up = Linear(D, F, ("embed", "mlp"), init, config.bias)
        self.down = Linear(F, D, ("mlp", "embed"), output, config.bias)

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        up = self.up(x_BLD)
        hidden = activation(up) if self.gate is None else activation(self.gate(x_BLD)) * up
        hidden = constrain(hidden, "batch", None, "mlp")
        return self.down(dropout(hidden, self.config.dropout.hidden, dropout_key))
