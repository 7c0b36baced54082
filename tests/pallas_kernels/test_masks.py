"""Masks allow exactly the pairs that their definitions, written as loops over pairs, allow; what they say of blocks is
true of the pairs; and the visits that are planned from it leave no block out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_masks import densely
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import compiled

from pallas_kernels.masks import (
    BigBird,
    Blocks,
    Causal,
    Chunked,
    Full,
    Mask,
    Ordered,
    Prefix,
    Segments,
    SlidingWindow,
)
from pallas_kernels.rules import Slots, dense
from pallas_kernels.visits import (
    COMPUTE,
    EMPTY,
    FIRST,
    FULL,
    LAST,
    PARTIAL,
    WHOLE,
    BlockMask,
    Visits,
    cut,
    pack,
    plan,
    unpack,
)

PREFIX = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([4, 0], np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 0, 0]], np.int32)

# In the first row the text is read in the order 1, 0, 2; slots 3 and 4 predict the tokens 0 and 2; 5 is padding.
ORDER = np.array([[3, 1, 5, -2, -4, 0], [1, 3, 5, 7, -6, -2]], np.int32)
TABLE = ((True, False, True), (False, True, False), (True, True, False))
BIRD = BigBird(window=1, globals=1, random=1, seed=2, size=1)


def window(left: int, right: int):
    return SlidingWindow(left, right), lambda b, q, k: -left <= k - q <= right


def segments(offset: int, queries: int):
    rows = SEGMENTS[:, offset : offset + queries]
    mask = Segments(jnp.asarray(rows), jnp.asarray(SEGMENTS))
    return mask, lambda b, q, k: SEGMENTS[b, q] == SEGMENTS[b, k] != 0


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
    lengths = Prefix(jnp.asarray(LENGTHS)), lambda b, q, k: k < LENGTHS[b]
    chunked = Chunked(4), lambda b, q, k: q // 4 == k // 4
    blocks = Blocks(TABLE, 2), lambda b, q, k: TABLE[q // 2][k // 2]
    near, packed, permuted = window(2, 1), segments(offset, queries), ordered(offset, queries)

    def both(one, other):
        return one[0] & other[0], lambda b, q, k: one[1](b, q, k) and other[1](b, q, k)

    def either(one, other):
        return one[0] | other[0], lambda b, q, k: one[1](b, q, k) or other[1](b, q, k)

    return {
        "full": full,
        "causal": causal,
        "prefix": prefix,
        "prefix by lengths": lengths,
        "window": near,
        "segments": packed,
        "chunked": chunked,
        "blocks": blocks,
        "causal & window": both(causal, near),
        "causal & chunked": both(causal, chunked),
        "causal & blocks": both(causal, blocks),
        "blocks | window": either(blocks, near),
        "causal | prefix": either(causal, prefix),
        "causal | prefix by lengths": either(causal, lengths),
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


@pytest.mark.parametrize("offset, queries", [(0, 6), (3, 2)])
def test_allowed_pairs(offset, queries):
    made = {name: mask for name, (mask, _) in cases(offset, queries).items()}
    columns = jnp.arange(queries) + offset

    def every(masks, query_L, key_S):
        return {name: densely(mask, query_L, key_S) for name, mask in masks.items()}

    # Blocks of a table and chunks count from the first query of all, so they are asked of the whole
    whole = {name: made.pop(name) for name in list(made) if "chunked" in name} if offset else {}
    got = compiled(every)(made, columns, jnp.arange(6))  # masks and their arrays go through jit
    got |= {name: x[:, offset : offset + queries] for name, x in every(whole, jnp.arange(6), jnp.arange(6)).items()}
    for name, (_, allows) in cases(offset, queries).items():
        wanted = np.array([[[allows(b, q + offset, k) for k in range(6)] for q in range(queries)] for b in range(2)])
        assert got[name].dtype == bool
        np.testing.assert_array_equal(np.broadcast_to(got[name], wanted.shape), wanted, err_msg=name)


def test_full_is_the_neutral_element_and_never_evaluated():
    causal = Causal()
    assert (Full() & causal) is causal and (causal & Full()) is causal
    assert isinstance(causal | Full(), Full) and isinstance(Full() | causal, Full)


def test_an_order_by_hand():
    got = np.asarray(densely(Ordered(jnp.asarray(ORDER), jnp.asarray(ORDER)), jnp.arange(6), jnp.arange(6)))[0]
    assert got.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6,
    ]  # fmt: skip


def test_bigbird_has_its_window_its_global_blocks_and_so_many_random_ones():
    bird = BigBird(window=3, globals=2, random=2, seed=1, size=4)
    table = bird.blocks(43, 39).table
    assert table.shape == (11, 10)
    for i in range(11):
        certain = [j for j in range(10) if abs(i - j) <= 1 or i < 2 or j < 2]
        assert table[i, certain].all()
        assert table[i].sum() == min(10, len(certain) + 2)
    assert (BigBird(window=3, globals=2, random=2, seed=5, size=4).blocks(43, 39).table != table).any()
    allowed = np.asarray(densely(bird, jnp.arange(43), jnp.arange(39)))[0]
    np.testing.assert_array_equal(allowed, np.repeat(np.repeat(table, 4, 0), 4, 1)[:43, :39])
    # a part that begins in a later column is a part of the whole
    kinds = cut(bird, 12, 39, 20, 4, 4).kinds[0]
    np.testing.assert_array_equal(kinds != EMPTY, table[5:8])


def test_what_is_refused():
    with pytest.raises(TypeError, match="Mask does not say"):
        densely(Mask(), jnp.arange(2), jnp.arange(2))
    with pytest.raises(ValueError, match=r"query array of shape \(2, 6\) for 3 positions"):
        densely(Segments(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS)), jnp.arange(3), jnp.arange(6))
    with pytest.raises(ValueError, match="left=-1"):
        SlidingWindow(-1, 0)
    with pytest.raises(ValueError, match="size=0"):
        Chunked(0)
    with pytest.raises(ValueError, match=r"Blocks has \(3, 3\) blocks of 2; these lengths need \(4, 3\)"):
        cut(Blocks(TABLE, 2), 4, 6, 3, 2, 2)
    with pytest.raises(ValueError, match="an odd window"):
        BigBird(window=2)
    with pytest.raises(ValueError, match="BigBird needs a q_offset that is known"):
        cut(BIRD, 4, 6, jnp.int32(1), 2, 2)


# Blocks of pairs

EXACT = ("full", "causal", "window", "blocks", "causal, then window")
LENGTH_CHOICES = ((9, 14), (16, 16), (7, 5))
BLOCK_CHOICES = ((4, 4), (3, 5), (8, 16))


def random_mask(name: str, queries: int, keys: int, seed: int) -> Mask:
    numbers = np.random.default_rng(seed)

    def rows(low, high, length, in_order=True):
        drawn = numbers.integers(low, high, (2, length), np.int32)
        return jnp.asarray(np.sort(drawn, axis=1) if in_order else drawn)

    left, right, size = (int(n) for n in numbers.integers(0, 9, 3))
    return {
        "full": lambda: Full(),
        "causal": lambda: Causal(),
        "window": lambda: SlidingWindow(left, right),
        "chunked": lambda: Chunked(size + 1),
        "prefix": lambda: Prefix(rows(0, 2, keys, in_order=False)),
        "prefix by lengths": lambda: Prefix(rows(0, keys + 1, 1)[:, 0]),
        "segments": lambda: Segments(rows(0, 5, queries), rows(0, 4, keys)),
        "segments in any order": lambda: Segments(rows(0, 3, queries, False), rows(0, 3, keys, False)),
        "ordered": lambda: Ordered(rows(-5, 6, queries, False), rows(-5, 6, keys, False)),
        "blocks": lambda: Blocks(tuple(map(tuple, (numbers.random((40, 40)) < 0.4).tolist())), 1 + size % 4),
        "bigbird": lambda: BigBird(window=1, globals=1, random=1, size=1 + size % 4, seed=seed),
    }[name]()


NAMES = ("full", "causal", "window", "chunked", "prefix", "prefix by lengths", "segments", "segments in any order",
         "ordered", "blocks", "bigbird")  # fmt: skip


def blocks_of(allowed_BLS: np.ndarray, query_block: int, key_block: int):
    """(whether any pair, whether all pairs of each block are allowed), of pairs that exist."""
    _, L, S = allowed_BLS.shape
    cuts = [(slice(None), slice(i, i + query_block), slice(j, j + key_block))
            for i in range(0, L, query_block) for j in range(0, S, key_block)]  # fmt: skip
    shape = (allowed_BLS.shape[0], -(-L // query_block), -(-S // key_block))
    some, all_ = ([getattr(allowed_BLS[c], what)((1, 2)) for c in cuts] for what in ("any", "all"))
    return np.stack(some, 1).reshape(shape), np.stack(all_, 1).reshape(shape)


def check_blocks(mask: Mask, queries, keys, offset, query_block, key_block, traced=False, exact=False) -> None:
    allowed = offset_allowed(mask, queries, keys, offset)
    some, all_ = blocks_of(allowed, query_block, key_block)
    if traced:
        made = []

        def kinds_of(offset):
            made.append(cut(mask, queries, keys, offset, query_block, key_block))
            return jnp.asarray(made[-1].kinds)

        kinds, possible = np.asarray(compiled(kinds_of)(jnp.int32(offset))), made[-1].possible
    else:
        blocks = cut(mask, queries, keys, offset, query_block, key_block)
        kinds, possible = np.asarray(blocks.kinds), blocks.possible
        assert set(np.unique(kinds)) <= set(blocks.kinds_there)
    kinds = np.broadcast_to(kinds, some.shape)
    assert not some[kinds == EMPTY].any(), "a block called empty has an allowed pair"
    assert all_[kinds == FULL].all(), "a block called full has a pair that is not allowed"
    assert not some[:, ~possible].any(), "a block called impossible has an allowed pair"
    if keys % key_block:
        assert not (kinds[..., -1] == FULL).any(), "a full block reaches over the end of the keys"
    if exact:
        np.testing.assert_array_equal(kinds == EMPTY, ~some)
        whole = slice(None, -1) if keys % key_block else slice(None)
        np.testing.assert_array_equal((kinds == FULL)[..., whole], all_[..., whole])


def offset_allowed(mask: Mask, queries: int, keys: int, offset: int) -> np.ndarray:
    """Pairs of a call whose first query is in column ``offset``, from the rule as a kernel asks it."""
    slots = Slots(queries, keys, offset)
    return np.asarray(dense(mask.rule(slots), slots, jnp.arange(queries) + offset, jnp.arange(keys)))


@pytest.mark.parametrize("offset", [0, 6])
@pytest.mark.parametrize("name", ["full", "causal", "window", "blocks"])
def test_static_masks_know_their_blocks_exactly(name, offset):
    for seed, (lengths, sizes) in enumerate((a, b) for a in LENGTH_CHOICES for b in BLOCK_CHOICES):
        mask = random_mask(name, *lengths, seed)
        blocks = cut(mask, *lengths, offset, *sizes)
        assert blocks.static
        check_blocks(mask, *lengths, offset, *sizes, exact=True)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_any_mask_says_of_blocks_is_true(data):
    # few shapes, as each is compiled
    lengths, sizes = data.draw(st.sampled_from(tuple(zip(LENGTH_CHOICES, BLOCK_CHOICES, strict=True))))
    offset = data.draw(st.sampled_from((0, 6)))
    mask = random_mask(data.draw(st.sampled_from(NAMES)), *lengths, data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(0, 2))):
        other = random_mask(data.draw(st.sampled_from(NAMES)), *lengths, data.draw(st.integers(0, 99)))
        mask = mask & other if data.draw(st.booleans()) else mask | other
    check_blocks(mask, *lengths, offset, *sizes)


@pytest.mark.parametrize("name", ["causal", "chunked", "blocks", "segments", "ordered"])
def test_what_is_said_of_blocks_where_the_offset_is_traced(name):
    check_blocks(random_mask(name, 9, 14, 1), 9, 14, 6, 4, 4, traced=True)


def test_data_that_is_sorted_is_known_to_the_block():
    """Packed rows: what a causal kernel skips at run time."""
    segment_BL = jnp.asarray([[1] * 8 + [2] * 4 + [3] * 8 + [0] * 4])
    blocks = cut(Causal() & Segments(segment_BL, segment_BL), 24, 24, 0, 4, 4)
    E, P, F = EMPTY, PARTIAL, FULL
    assert np.asarray(blocks.kinds)[0].tolist() == [
        [P, E, E, E, E, E],
        [F, P, E, E, E, E],
        [E, E, P, E, E, E],
        [E, E, E, P, E, E],
        [E, E, E, F, P, E],
        [E, E, E, E, E, E],
    ]
    np.testing.assert_array_equal(blocks.possible, np.tri(6, dtype=bool))


# Visits


def check_plan(blocks: BlockMask, by: str, visits: Visits) -> None:
    kinds, packed = np.asarray(blocks.kinds), np.asarray(visits.packed)
    rows_of = kinds if by == "query" else kinds.transpose(0, 2, 1)
    counts = []
    for b in range(kinds.shape[0]):
        query, key, flags = unpack(packed[b])
        row, column = (query, key) if by == "query" else (key, query)
        real = flags != 0
        count = int(real.sum())
        counts.append(count)
        assert not real[count:].any(), "visits that do nothing come last"
        if count < len(row):  # and fetch nothing new
            assert (query[count:] == query[count - 1]).all() and (key[count:] == key[count - 1]).all()
        row, column, flags = row[:count], column[:count], flags[:count]
        computed = (flags & COMPUTE) != 0
        np.testing.assert_array_equal((row[computed], column[computed]), np.nonzero(rows_of[b]))
        assert sorted(set(row)) == list(range(rows_of.shape[1])), "each row is written"
        assert list(row) == sorted(row)
        busy = rows_of[b].any(1)
        assert not (busy[row] & ~computed).any(), "a row that has something to compute has no other visits"
        np.testing.assert_array_equal((flags & FIRST) != 0, np.r_[True, row[1:] != row[:-1]])
        np.testing.assert_array_equal((flags & LAST) != 0, np.r_[row[1:] != row[:-1], True])
        np.testing.assert_array_equal((flags & WHOLE) != 0, rows_of[b][row, column] == FULL)
    assert int(visits.count) == max(counts)


@functools.lru_cache
def possible_blocks(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows).random((rows, columns)) < 0.7


@functools.partial(compiled, static_argnums=(1, 2))
def planned(kinds: jax.Array, by: str, causal: bool = False) -> Visits:
    """Within a compiled function, where shapes must not hang on the data."""
    shape = kinds.shape[1:]
    possible = np.tri(*shape, dtype=bool) if causal else possible_blocks(*shape)
    return plan(BlockMask(None, None, possible, kinds, 4, 4), by)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_block_that_is_not_empty_is_visited_once(data):
    shape = data.draw(st.sampled_from(((1, 4, 5), (2, 6, 3), (3, 1, 4), (2, 3, 1))))
    numbers = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    empty = data.draw(st.sampled_from((0.1, 0.5, 0.9)))
    kinds = numbers.choice([EMPTY, PARTIAL, FULL], shape, p=[empty, (1 - empty) / 2, (1 - empty) / 2]).astype(np.int32)
    known = BlockMask(None, None, kinds.any(0), kinds, 4, 4)
    assert known.static
    running = jnp.asarray(np.where(possible_blocks(*shape[1:]), kinds, EMPTY))
    for by in ("query", "key"):
        check_plan(known, by, plan(known, by))
        check_plan(known._replace(kinds=running), by, planned(running, by))


@pytest.mark.parametrize("name", ["causal", "segments", "blocks"])
def test_plans_of_masks(name):
    blocks = cut(random_mask(name, 16, 16, 3) & Causal(), 16, 16, 0, 4, 4)
    assert blocks.static == (name != "segments")
    for by in ("query", "key"):
        check_plan(blocks, by, plan(blocks, by) if blocks.static else planned(blocks.kinds, by, True))


def test_a_visit_is_one_number():
    for visit in ((0, 0, 0), (8191, 8190, 15), (5, 8191, 6)):
        assert unpack(pack(*visit)) == visit
        assert tuple(int(x) for x in unpack(pack(*(jnp.int32(x) for x in visit)))) == visit
    with pytest.raises(ValueError, match="16384 blocks along the sequence"):
        plan(BlockMask(None, None, np.ones((16384, 1), bool), np.ones((1, 16384, 1), np.int32), 1, 1), "query")
