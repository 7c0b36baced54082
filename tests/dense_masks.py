"""A mask as the dense array that it never is elsewhere."""

from __future__ import annotations

import jax
from jax.core import Tracer

from pallas_kernels.masks import Mask
from pallas_kernels.rules import Slots, dense


def densely(mask: Mask, query_L: jax.Array, key_S: jax.Array) -> jax.Array:
    """Whether the query in column ``query_L[i]``, the i-th of those the mask's arrays describe, may see the key in
    column ``key_S[j]``: [1 or B, L, S] booleans. Columns of queries follow one another."""
    first = query_L[0]
    slots = Slots(query_L.shape[0], key_S.shape[0], first if isinstance(first, Tracer) else int(first))
    return dense(mask.rule(slots), slots, query_L, key_S)
