"""One layer of a stack: mixer, cross-attention where there is an encoder, and per-token part, each with its norms and a
residual sum.

Letters: B batch, L positions, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from t5x_like.core.config import Config
from t5x_like.core.ranges import BelowOne
from t5x_like.layers.attention import Attention
from t5x_like.layers.context import Cache, Context, Out, joined
from t5x_like.layers.mixer import Mixer, PerToken
from t5x_like.layers.norms import Norm, RMSNorm

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module, Site

Placement = Literal["pre", "post", "sandwich"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer(Config, where="model"):
    """One layer.

    Attributes:
      mixer: sublayer in which tokens see each other.
      feed_forward: per-token part, such as an MLP; none: no such part.
      cross: attention to the encoder's output; none: no cross-attention.
      norm: norm of each sublayer.
      placement: place of the norms. pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x))).
      dropout: rate of dropout of each sublayer's output, before it is added.
    """

    mixer: Mixer
    feed_forward: PerToken | None = None
    cross: Attention | None = None
    norm: Norm = RMSNorm()
    placement: Placement = "pre"
    dropout: BelowOne = 0.0

    @property
    def parts(self) -> dict[str, Mixer | PerToken]:
        """The sublayers, by the names of their parameters."""
        across = {"cross_attention": self.cross} if self.cross is not None else {}
        after = {self.feed_forward.name: self.feed_forward} if self.feed_forward is not None else {}
        return {self.mixer.name: self.mixer} | across | after

    def declare(self, site: Site) -> Module:
        from t5x_like.layers.module import Module

        def sublayer(name: str, part: Mixer | PerToken) -> Module:
            after = self.norm.declare(site.width) if self.placement == "sandwich" else None
            where = dataclasses.replace(site, positions=None) if name == "cross_attention" else site
            return Module(None, inner=part.declare(where), norm=self.norm.declare(site.width), norm_after=after)

        return Module(self, **{name: sublayer(name, part) for name, part in self.parts.items()})

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, prepared: Any = None, key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Out]:
        """([B, L, D], further results of the sublayers, with the mixer's updated cache).

        Args:
          parts: parameters of the layer.
          x_BLD: residual stream.
          context: values that all layers share.
          prepared: result of ``mixer.prepare``.
          key: random key of dropout.
          cache: result of ``start_cache``, updated by earlier calls.
        """
        from t5x_like.arrays.keys import maybe_named
        from t5x_like.layers.dropout import dropout
        from t5x_like.sharding.mesh import constrain

        outs: dict[str, Out] = {}
        caches, post = cache or {}, self.placement == "post"

        def add(name: str, x_BLD: jax.Array, compute: Callable[[Module, jax.Array], tuple[jax.Array, Out]]):
            """The sum of x and a sublayer's output, with the norms around them; only this knows their placement."""
            sublayer, own_key = getattr(parts, name), maybe_named(key, f"after_{name}")
            y_BLD, out = compute(sublayer.inner, x_BLD if post else sublayer.norm(x_BLD))
            outs[name] = out._replace(statistics={"inner": out.statistics} if out.statistics else {})
            y_BLD = y_BLD if sublayer.norm_after is None else sublayer.norm_after(y_BLD)
            x_BLD = x_BLD + dropout(y_BLD, self.dropout, maybe_named(own_key, "residual"))
            return constrain(sublayer.norm(x_BLD) if post else x_BLD, "batch", "length", "activation")

        def mix(inner, x):
            return inner(x, context, prepared, maybe_named(key, "attention"), caches.get(self.mixer.name))

        def look(inner, x):
            across: Any = self.cross
            seen = caches.get("cross_attention") or across.keys_values(inner, context.memory and context.memory[0])
            mask = context.cross_mask()
            return across.attend(inner, x, seen, context, mask, maybe_named(key, "cross_attention")), Out()

        x_BLD = add(self.mixer.name, x_BLD, mix)
        if self.cross is not None:
            x_BLD = add("cross_attention", x_BLD, look)
        if self.feed_forward is not None:
            x_BLD = add(self.feed_forward.name, x_BLD, lambda inner, x: inner(x, context, maybe_named(key, "hidden")))
        return x_BLD, joined(outs)

    def start_cache(self, parts: Module, batch: int, columns: int, memory_BSD: jax.Array | None, dtype: Any) -> Cache:
        """An empty cache: the mixer's, and keys and values made of the encoder's output, once, by name of sublayer."""
        cache: Cache = {self.mixer.name: self.mixer.start_cache(batch, columns, dtype)}
        if self.cross is not None and memory_BSD is not None:
            cache["cross_attention"] = self.cross.keys_values(parts.cross_attention.inner, memory_BSD)
        return cache
