"""Bases of a layer's sublayers: mixers, in which tokens see each other, and per-token parts.

A new kind is a frozen dataclass in one file with ``declare`` and ``apply``. See ``attention`` and ``feed_forward``.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from t5x_like.core.config import Config
from t5x_like.layers.positions import Positions

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.context import Cache, Context, Out
    from t5x_like.layers.module import Module, Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sublayer(Config, abc.ABC, where="model"):
    """Base of both kinds.

    Attributes:
      name: name of its parameters, below the layer.
    """

    name: ClassVar[str] = ""

    @property
    def split_sizes(self) -> dict[str, int]:
        """Sizes that a mesh must divide and that no parameter's shape shows: logical axis to size."""
        return {}

    def declare(self, site: Site) -> Module:
        """Its parameters: ``Module(self, NAME=...)`` of ``param``s, ``Linear``s and other modules."""
        raise TypeError(f"{type(self).__name__} does not declare its parameters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer(Sublayer, abc.ABC):
    """A sublayer in which tokens see each other: attention, a recurrence, a convolution.

    Attributes:
      heads, head_dim: number of heads for biases of positions, and their size, for rotations; 0: none.
      positions: positions of this layer in place of its stack's; None: the stack's.
    """

    name: ClassVar[str] = "mixer"
    heads: ClassVar[int] = 0
    head_dim: ClassVar[int] = 0
    positions: ClassVar[Positions | None] = None

    @property
    def by_column(self) -> bool:
        """Whether visibility depends on columns, so that tokens must be in order."""
        return True

    def pair_flops(self, queries: int, keys: int, causal: bool) -> float:
        """Floating-point operations of one example's forward pass beyond those of the parameters."""
        return 0.0

    def prepare(self, context: Context) -> Any:
        """Arrays that all layers of this choice share, made once per call of the stack; a tree of arrays or None."""
        return None

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, prepared: Any = None, key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Out]:
        """([B, L, D], further results).

        Args:
          parts: parameters, as declared.
          x_BLD: normalized input of the sublayer.
          context: values that all layers share.
          prepared: result of ``prepare``.
          key: random key of dropout; None: no dropout.
          cache: result of ``start_cache``, updated by earlier calls; columns from ``context.offset`` on are replaced.
        """
        raise TypeError(f"{type(self).__name__} does not compute anything")

    def start_cache(self, batch: int, columns: int, dtype: Any) -> Cache:
        """An empty cache of earlier columns for decoding; the first dimension of each array is the batch."""
        raise TypeError(f"{type(self).__name__} cannot decode: it has no start_cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerToken(Sublayer, abc.ABC):
    """A sublayer that computes on each token by itself: an MLP, experts."""

    name: ClassVar[str] = "feed_forward"

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, key: jax.Array | None = None
    ) -> tuple[jax.Array, Out]:
        """([B, L, D], further results); see ``Mixer.apply``."""
        raise TypeError(f"{type(self).__name__} does not compute anything")
