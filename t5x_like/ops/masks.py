"""Who may attend to whom, said as objects and never stored as a dense array; join them with ``&`` and ``|``.

A kernel reads a mask's fields; the reference asks ``allowed`` for the pairs it needs. Rows and columns are counted
along the sequence as stored (absolute, so that decoding passes an offset), and packed examples differ by segment.

Letters: B batch, L queries, S keys.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Base of all masks. ``allowed`` gives a boolean that broadcasts to [B, L, S]."""

    def allowed(self, query_L: jax.Array, key_S: jax.Array) -> jax.Array:
        """Whether query row ``query_L[i]`` may see key column ``key_S[j]``: [1 or B, L, S] booleans."""
        raise TypeError(f"{type(self).__name__} does not say who may attend to whom")

    @property
    def may_empty_a_row(self) -> bool:
        """Whether some query may be left without any key; its output is then 0."""
        return True

    def __and__(self, other: Mask) -> Mask:
        return other if isinstance(self, Full) else self if isinstance(other, Full) else And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return self if isinstance(self, Full) else other if isinstance(other, Full) else Or(self, other)


@dataclasses.dataclass(frozen=True, eq=False)
class Full(Mask):
    """Every query sees every key."""

    def allowed(self, query_L, key_S):
        return jnp.ones((1, query_L.shape[0], key_S.shape[0]), bool)

    @property
    def may_empty_a_row(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Causal(Mask):
    """A query sees its own column and those before it."""

    def allowed(self, query_L, key_S):
        return (key_S[None, :] <= query_L[:, None])[None]

    @property
    def may_empty_a_row(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Every query sees the keys marked as prefix: ``key_prefix_BS``, non-zero inside a prefix. Prefix LM is
    ``Causal() | Prefix(marks)``, and ``& Segments(...)`` when packed."""

    key_prefix_BS: jax.Array

    def allowed(self, query_L, key_S):
        return jnp.broadcast_to(
            (self.key_prefix_BS != 0)[:, None, :], (self.key_prefix_BS.shape[0], query_L.shape[0], key_S.shape[0])
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SlidingWindow(Mask):
    """A query sees at most ``left`` columns before its own and ``right`` after it."""

    left: int
    right: int

    def allowed(self, query_L, key_S):
        distance = key_S[None, :] - query_L[:, None]
        return ((distance >= -self.left) & (distance <= self.right))[None]


@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    """A query sees the keys of its own segment. Segment 0 is padding: it sees nothing and nothing sees it."""

    query_BL: jax.Array
    key_BS: jax.Array

    def allowed(self, query_L, key_S):
        same = self.query_BL[:, :, None] == self.key_BS[:, None, :]
        return same & (self.key_BS != 0)[:, None, :]


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered(Mask):
    """Permutation language modelling (Yang et al. 2019, section 2.3) as numbers: a query with number a sees the keys
    whose number b is 0 < b <= |a|.

    A token that is r-th in the order has 2r + 1, a slot that predicts it -2r, padding 0. So a token sees itself and
    those before it in the order, a slot only those before its token, and nobody sees a slot.
    """

    query_order_BL: jax.Array
    key_order_BS: jax.Array

    def allowed(self, query_L, key_S):
        key_B1S = self.key_order_BS[:, None, :]
        return (key_B1S > 0) & (key_B1S <= jnp.abs(self.query_order_BL)[:, :, None])


@dataclasses.dataclass(frozen=True, eq=False)
class And(Mask):
    """Both allow it."""

    one: Mask
    other: Mask

    def allowed(self, query_L, key_S):
        return self.one.allowed(query_L, key_S) & self.other.allowed(query_L, key_S)


@dataclasses.dataclass(frozen=True, eq=False)
class Or(Mask):
    """One of both allows it."""

    one: Mask
    other: Mask

    def allowed(self, query_L, key_S):
        return self.one.allowed(query_L, key_S) | self.other.allowed(query_L, key_S)

    @property
    def may_empty_a_row(self) -> bool:
        return self.one.may_empty_a_row and self.other.may_empty_a_row


for _mask, _arrays in (
    (Full, ()), (Causal, ()), (Prefix, ("key_prefix_BS",)), (Segments, ("query_BL", "key_BS")),
    (Ordered, ("query_order_BL", "key_order_BS")),
):  # fmt: skip
    jax.tree_util.register_dataclass(_mask, data_fields=list(_arrays), meta_fields=[])
jax.tree_util.register_dataclass(SlidingWindow, data_fields=[], meta_fields=["left", "right"])
for _mask in (And, Or):
    jax.tree_util.register_dataclass(_mask, data_fields=["one", "other"], meta_fields=[])
