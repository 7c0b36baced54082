"""A mixer of one's own: each feature is a running mean of the past with a learned decay, computed step by step; its
cache is the last mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from t5x_like.arrays.spec import Initializer
from t5x_like.config import Mixer
from t5x_like.layers.context import Out
from t5x_like.layers.module import Linear, Module
from t5x_like.layers.param import param


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningMean(Mixer):
    start: float = 2.0  # of the decay, before the sigmoid

    name: ClassVar[str] = "running_mean"

    def declare(self, site):
        D, init = site.width, site.init.kernel(site.width)
        return Module(
            self,
            decay=param((D,), ("norm",), Initializer("constant", self.start)),
            up=Linear(D, D, ("embed", "heads"), init),
            out=Linear(D, D, ("heads", "embed"), init),
        )

    def apply(self, parts, x_BLD, context, prepared=None, key=None, cache=None):
        decay, x_BLD = jax.nn.sigmoid(parts.decay[...]).astype(x_BLD.dtype), parts.up(x_BLD)
        last_BD = jnp.zeros_like(x_BLD[:, 0]) if cache is None else cache["mean"]

        def one(mean_BD, x_BD):
            mean_BD = decay * mean_BD + (1 - decay) * x_BD
            return mean_BD, mean_BD

        last_BD, means_LBD = jax.lax.scan(one, last_BD, jnp.swapaxes(x_BLD, 0, 1))
        out = parts.out(jnp.swapaxes(means_LBD, 0, 1))
        return out, Out(None if cache is None else {"mean": last_BD})

    def start_cache(self, batch, columns, dtype):
        return {"mean": jnp.zeros((batch, self.width_of_cache), dtype)}

    width_of_cache: int = 16
