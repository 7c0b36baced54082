"""Values that the layers of a stack share in one call, and the masks made of them, in training and decoding alike.

Letters: B batch, L queries, S keys, D model width, K key heads, N size of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
        from t5x_like.ops.attention import Causal, Full, Ordered, Prefix, Segments, SlidingWindow

        mask: Mask = Causal() if self.causal else Full()
        if self.prefix_BS is not None:
            mask = mask | Prefix(self.prefix_BS)
        if self.order_BS is not None:
            mask = mask & Ordered(self.order_BS, self.order_BS)
        if window:
            mask = mask & SlidingWindow(window, window)
        return mask if self.segments is None else mask & Segments(*self.segments)

    def cross_mask(self) -> Mask:
        """The mask of cross-attention: visible tokens of the encoder."""
        from t5x_like.ops.attention import Full, Segments

        segments = self.memory[1] if self.memory is not None else None
        return Full() if segments is None else Segments(*segments)


def add_sums(one: Sums, other: Sums) -> Sums:
    """The sums and weights of both, added where a name is in both."""
    both = {name: (one[name][0] + other[name][0], one[name][1] + other[name][1]) for name in one.keys() & other.keys()}
    return one | other | both


def map_sums(function: Callable[[Any], Any], sums: Sums) -> Sums:
    """``function`` of each sum and weight."""
    return {name: (function(total), function(weight)) for name, (total, weight) in sums.items()}
