"""A front end of one's own: pairs of neighbouring feature vectors become one activation."""

from __future__ import annotations

import dataclasses

from t5x_like.config import BatchArray, Inputs
from t5x_like.layers.module import Linear, Module


@dataclasses.dataclass(frozen=True)
class Pairs(Inputs):
    size: int

    def arrays(self, side):
        return {f"{side}_pairs": BatchArray(("batch", "length", "pair", "features"), "float32",
                                            (("pair", 2), ("features", self.size)))}  # fmt: skip

    def declare(self, width, init, embedding_init_std):
        return Module(self, projection=Linear(2 * self.size, width, ("features", "embed"), init.kernel(2 * self.size)))

    def apply(self, parts, batch, side, table, dtype):
        x = batch[f"{side}_pairs"].astype(dtype)
        return parts.projection(x.reshape(*x.shape[:2], -1))
