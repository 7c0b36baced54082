"""Values that the layers of a stack share in one call, and the masks made of them, in training and decoding alike.

Letters: B batch, L queries, S keys, D model width, K key heads, N size of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.positions import Positions
    from t5x_like.ops.attention import Backend, Mask

Cache = dict[str, Any]  # a mixer's arrays of earlier columns, such as {"key", "value"}: [B, S, K, N]
Sums = dict[str, tuple[Any, Any]]  # name to (sum, weight), float32 scalars


class Out(NamedTuple):
    """Results of a layer besides the residual stream.

    Attributes:
      cache: the updated cache; None without one.
      losses: side losses, times their coefficients; the mean of each is added to the loss.
      metrics: further sums to be logged.
      statistics: sums over tokens, by the name of a parameter without gradient (``param(update=...)``), which they
        update once a step.
    """

    cache: Any = None
    losses: Sums = {}
    metrics: Sums = {}
    statistics: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Context:
    """One call of one stack.

    Attributes:
      causal: whether a query sees no later key.
      positions_BL: positions of the queries, int32.
      segments: (of queries [B, L], of keys [B, S]); a query sees its own segment only, and segment 0 is padding; None:
        all columns are of one segment.
      prefix_BS: non-zero at keys that all queries see, causal or not; None: no prefix.
      order_BS: visible pairs in permutation language modelling; see ``Ordered``.
      memory: (the encoder's output [B, S, D], or None where a cache holds its keys and values; segments of queries and
        of the encoder's tokens, as above); None without an encoder.
      offset: column of the first query: 0, or the column reached in decoding.
      positions: positions of the stack, for layers without their own.
      position_table: parameters of these, where the stack's layers share them.
      backend: backend of attention.
      scan: whether repeated layers are one loop, compiled once; off compiles each, which a CPU runs faster.
      remat: activations recomputed for gradients: none, all but matrix products and attention, or all.
    """

    causal: bool
    positions_BL: jax.Array
    segments: tuple[jax.Array, jax.Array] | None = None
    prefix_BS: jax.Array | None = None
    order_BS: jax.Array | None = None
    memory: tuple[jax.Array | None, tuple[jax.Array, jax.Array] | None] | None = None
    offset: jax.Array | int = 0
    positions: Positions | None = None
    position_table: Any = None
    backend: Backend = "auto"
    scan: bool = True
    remat: str = "none"

    def mask(self, window: int = 0) -> Mask:
        """The mask of self-attention.

        Args:
          window: columns seen to each side; 0 is all.
        """
        from t5x_like.ops.attention import masks

        mask: Mask = masks.Causal() if self.causal else masks.Full()
        if self.prefix_BS is not None:
            mask = mask | masks.Prefix(self.prefix_BS)
        if self.order_BS is not None:
            mask = mask & masks.Ordered(self.order_BS, self.order_BS)
        if window:
            mask = mask & masks.SlidingWindow(window, window)
        return mask if self.segments is None else mask & masks.Segments(*self.segments)

    def cross_mask(self) -> Mask:
        """The mask of cross-attention: visible tokens of the encoder."""
        from t5x_like.ops.attention import masks

        segments = self.memory[1] if self.memory is not None else None
        return masks.Full() if segments is None else masks.Segments(*segments)


def joined(outs: Mapping[str, Out]) -> Out:
    """The results of several parts: sums of one name are added; caches and statistics go by part, where it has any."""
    losses, metrics = {}, {}
    for out in outs.values():
        losses, metrics = _add(losses, out.losses), _add(metrics, out.metrics)
    caches = {name: out.cache for name, out in outs.items() if out.cache is not None}
    statistics = {name: out.statistics for name, out in outs.items() if out.statistics}
    return Out(caches or None, losses, metrics, statistics)


def _add(one: Sums, other: Sums) -> Sums:
    both = {name: (one[name][0] + other[name][0], one[name][1] + other[name][1]) for name in one.keys() & other.keys()}
    return one | other | both
