"""Masks allow exactly the pairs that their definitions, written as loops over pairs, allow; alone and joined."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.ops.masks import Causal, Full, Mask, Ordered, Prefix, Segments, SlidingWindow

PREFIX = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 0, 0]], np.int32)

# In the first row the text is read in the order 1, 0, 2; slots 3 and 4 predict the tokens 0 and 2; 5 is padding.
ORDER = np.array([[3, 1, 5, -2, -4, 0], [1, 3, 5, 7, -6, -2]], np.int32)


def window(left: int, right: int):
    return SlidingWindow(left, right), lambda b, q, k: -left <= k - q <= right


def segments(offset: int, queries: int):
    rows = SEGMENTS[:, offset : offset + queries]
    return Segments(jnp.asarray(rows), jnp.asarray(SEGMENTS)), lambda b, q, k: (
        SEGMENTS[b, q] == SEGMENTS[b, k] and SEGMENTS[b, k] != 0
    )


def ordered(offset: int, queries: int):
    rows = ORDER[:, offset : offset + queries]

    def allows(b, q, k):
        """From the definition: r is the rank in the order; only tokens are seen."""
        if ORDER[b, k] <= 0 or ORDER[b, q] == 0:
            return False
        key_rank = (ORDER[b, k] - 1) // 2
        return key_rank <= (ORDER[b, q] - 1) // 2 if ORDER[b, q] > 0 else key_rank < -ORDER[b, q] // 2

    return Ordered(jnp.asarray(rows), jnp.asarray(ORDER)), allows


def cases(offset: int, queries: int):
    """Name to (mask, whether query q of row b may see key k)."""
    full = Full(), lambda b, q, k: True
    causal = Causal(), lambda b, q, k: k <= q
    prefix = Prefix(jnp.asarray(PREFIX)), lambda b, q, k: bool(PREFIX[b, k])
    near, packed, permuted = window(2, 1), segments(offset, queries), ordered(offset, queries)

    def both(one, other):
        return one[0] & other[0], lambda b, q, k: one[1](b, q, k) and other[1](b, q, k)

    def either(one, other):
        return one[0] | other[0], lambda b, q, k: one[1](b, q, k) or other[1](b, q, k)

    return {
        "full": full,
        "causal": causal,
        "prefix": prefix,
        "window": near,
        "segments": packed,
        "causal & window": both(causal, near),
        "causal | prefix": either(causal, prefix),
        "(causal | prefix) & segments": both(either(causal, prefix), packed),
        "((causal | prefix) & window) & segments": both(both(either(causal, prefix), near), packed),
        "full & causal": both(full, causal),
        "causal & full": both(causal, full),
        "full | prefix": either(full, prefix),
        "prefix | full": either(prefix, full),
        "segments | window": either(packed, near),
        "ordered": permuted,
        "segments & ordered": both(packed, permuted),
    }


@pytest.mark.parametrize("name", cases(0, 6))
@pytest.mark.parametrize("offset, queries", [(0, 6), (3, 2)])
def test_allowed_pairs(name, offset, queries):
    mask, allows = cases(offset, queries)[name]
    columns = jnp.arange(queries) + offset
    got = np.broadcast_to(np.asarray(mask.allowed(columns, jnp.arange(6))), (2, queries, 6))
    wanted = np.array([[[allows(b, q + offset, k) for k in range(6)] for q in range(queries)] for b in range(2)])
    assert got.dtype == bool
    np.testing.assert_array_equal(got, wanted)
    if not wanted.any(axis=-1).all():
        assert mask.may_empty_a_row, "attention would divide by zero"


@pytest.mark.parametrize("name", cases(0, 6))
def test_masks_pass_through_compiled_functions_with_their_arrays(name):
    mask, _ = cases(0, 6)[name]
    columns = jnp.arange(6)
    got = jax.jit(lambda m: m.allowed(columns, columns))(mask)
    np.testing.assert_array_equal(got, mask.allowed(columns, columns))


def test_full_is_the_neutral_element_and_never_evaluated():
    causal = Causal()
    assert (Full() & causal) is causal and (causal & Full()) is causal
    assert isinstance(causal | Full(), Full) and isinstance(Full() | causal, Full)
    assert not causal.may_empty_a_row and not (Prefix(jnp.asarray(PREFIX)) | causal).may_empty_a_row


def test_an_order_by_hand():
    got = np.asarray(Ordered(jnp.asarray(ORDER), jnp.asarray(ORDER)).allowed(jnp.arange(6), jnp.arange(6)))[0]
    assert got.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6,
    ]  # fmt: skip


def test_a_mask_without_a_rule_says_so():
    with pytest.raises(TypeError, match="Mask does not say"):
        Mask().allowed(jnp.arange(2), jnp.arange(2))
