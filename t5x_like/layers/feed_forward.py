"""The MLP of a layer, plain or gated."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from t5x_like.core.ranges import BelowOne, PositiveInt
from t5x_like.layers.context import Context, Out
from t5x_like.layers.mixer import PerToken

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module, Site

ActivationName = Literal["relu", "gelu", "gelu_tanh", "silu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward(PerToken):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020).

    Attributes:
      width: width of the hidden layer, F.
      activation: name of the activation function.
      gated: whether there is a gate.
      bias: whether the linear maps have biases.
      dropout: rate of dropout of the hidden layer.
    """

    width: PositiveInt
    activation: ActivationName = "gelu_tanh"
    gated: bool = True
    bias: bool = False
    dropout: BelowOne = 0.0

    @property
    def split_sizes(self) -> dict[str, int]:
        return {"mlp": self.width}

    def declare(self, site: Site) -> Module:
        from t5x_like.layers.module import Linear, Module

        D, F, init = site.width, self.width, site.init.kernel(site.width)
        return Module(
            self,
            gate=Linear(D, F, ("embed", "mlp"), init, self.bias) if self.gated else None,
            up=Linear(D, F, ("embed", "mlp"), init, self.bias),
            down=Linear(F, D, ("mlp", "embed"), site.init.kernel(F, site.depth), self.bias),
        )

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, key: jax.Array | None = None
    ) -> tuple[jax.Array, Out]:
        from t5x_like.layers.dropout import dropout
        from t5x_like.sharding.mesh import constrain

        up = parts.up(x_BLD)
        hidden = activation(self.activation, up if parts.gate is None else parts.gate(x_BLD))
        hidden = hidden if parts.gate is None else hidden * up
        hidden = constrain(hidden, "batch", "length", "mlp")
        return parts.down(dropout(hidden, self.dropout, key)), Out()


def activation(name: ActivationName, x: jax.Array) -> jax.Array:
    """An activation function by its name; ``gelu_tanh`` is an approximation of ``gelu``."""
    import jax

    if name.startswith("gelu"):
        return jax.nn.gelu(x, approximate=name == "gelu_tanh")
    return getattr(jax.nn, name)(x)
