"""Experts of one's own: each token goes to the expert with the highest score; a side loss and a metric of how even the
load is, and a bias of the router that no gradient changes (Wang et al. 2024, arXiv:2408.15664)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_like.config import PerToken
from t5x_like.layers.context import Out
from t5x_like.layers.module import Linear, Module
from t5x_like.layers.param import ZEROS, param


@dataclasses.dataclass(frozen=True)
class Nudge:
    """Experts with more than their share of the tokens get a smaller bias, others a larger one."""

    rate: float

    def __call__(self, bias, load):
        return bias - self.rate * jnp.sign(load - jnp.mean(load))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts(PerToken):
    count: int
    width: int
    balance: float = 0.01  # of the side loss
    rate: float = 0.1  # by which the router's bias moves in a step

    def declare(self, site):
        D, init = site.width, site.init.kernel(site.width)
        shape, axes = (self.count, D, self.width), ("experts", "embed", "mlp")
        return Module(
            self,
            router=Linear(D, self.count, ("embed", "experts"), init),
            up=param(shape, axes, init),
            down=param((self.count, self.width, D), ("experts", "mlp", "embed"), site.init.kernel(self.width)),
            bias=param((self.count,), ("experts",), ZEROS, update=Nudge(self.rate)),
        )

    def apply(self, parts, x_BLD, context, key=None):
        scores_BLE = jax.nn.softmax(parts.router(x_BLD).astype(jnp.float32), axis=-1)
        chosen_BL = jnp.argmax(scores_BLE + parts.bias[...], axis=-1)
        mine_BLE = jax.nn.one_hot(chosen_BL, self.count)
        hidden = jax.nn.relu(jnp.einsum("bld,edf->blef", x_BLD, parts.up[...].astype(x_BLD.dtype)))
        out = jnp.einsum("blef,efd->bled", hidden, parts.down[...].astype(x_BLD.dtype))
        out = jnp.einsum("bled,ble->bld", out, (scores_BLE * mine_BLE).astype(x_BLD.dtype))
        load_E, tokens = jnp.sum(mine_BLE, axis=(0, 1)), jnp.float32(chosen_BL.size)
        even = self.count * jnp.sum(load_E / tokens * jnp.mean(scores_BLE, axis=(0, 1)))
        largest = (self.count * jnp.max(load_E), tokens)
        return out, Out(
            losses={"balance": (self.balance * even * tokens, tokens)},
            metrics={"largest_load": largest},
            statistics={"bias": load_E},
        )
