"""How a call of the GPU kernels is cut into tiles: a ``Plan``, and the arrays that go with it.

Where mask and offset are known when compiling, the lists of tiles are numpy; otherwise XLA makes them, from one number
for each tile. Must not know kernels.

Letters: B batch, L queries, S keys, H query heads, I query blocks, J key blocks, P visits, D distances, R query units
of a ``Blocks`` mask, W words.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.biases import Alibi, Bias, Dense, T5Relative
from pallas_kernels.gpu_tiles import LOG2E, Data, Launch, Options, Plan, Sizes
from pallas_kernels.masks import Mask
from pallas_kernels.visits import EMPTY, FULL, cut, words_of


def prepare(
    options: Options, shape: Sizes, launch: Launch, keys_first: bool, mask: Mask, bias: Bias | None,
    sinks_H: jax.Array | None, streams_BH: jax.Array | None, q_offset: int | jax.Array,
) -> tuple[Plan, Data]:  # fmt: skip
    """A call cut for one kernel: by queries, or with ``keys_first`` by keys."""
    cuts = cut(mask, shape.L, shape.S, q_offset, launch.queries, launch.keys)
    reach = _reach(bias) if isinstance(bias, T5Relative) else None
    visits, counts, kinds = _lists(cuts, _near(cuts, reach, q_offset), keys_first)
    where = np.asarray(cuts.kinds != EMPTY) if cuts.static else cuts.possible[None]
    queries = np.minimum(launch.queries, shape.L - np.arange(where.shape[1]) * launch.queries)
    keys = np.minimum(launch.keys, shape.S - np.arange(where.shape[2]) * launch.keys)
    pairs = int(np.einsum("bij,i,j->", where, queries, keys)) * (shape.B // where.shape[0])
    plan = Plan(options, shape, launch, cuts.rule, tuple(cuts.slots.tables), reach, kinds, pairs, keys_first)
    data = Data(
        jnp.full((1,), q_offset, jnp.int32), jnp.asarray(visits), jnp.asarray(counts),
        tuple(a.astype(jnp.int32) for a in cuts.slots.query_data),
        tuple(a.astype(jnp.int32) for a in cuts.slots.key_data),
        tuple(jnp.asarray(words_of(mask, launch.keys, cuts.possible.shape[1])) for mask in cuts.slots.tables),
        streams_BH,
        relative(bias) * LOG2E if isinstance(bias, T5Relative) else None,
        bias.slopes_H.astype(jnp.float32) * LOG2E if isinstance(bias, Alibi) else None,
        bias.array if isinstance(bias, Dense) else None,
        None if sinks_H is None else sinks_H.astype(jnp.float32) * LOG2E,
    )  # fmt: skip
    return plan, data


def _reach(bias: T5Relative) -> tuple[int, int]:
    return -bias.reach, bias.reach if bias.bidirectional else 0


def relative(bias: T5Relative) -> jax.Array:
    """[H, D] float32, of the distances within reach."""
    low, high = _reach(bias)
    bias = dataclasses.replace(bias, table_KH=bias.table_KH.astype(jnp.float32))  # its gradient is summed in float32
    return bias.of_distance(jnp.arange(low, high + 1, dtype=jnp.int32))


def _near(cuts, reach: tuple[int, int] | None, q_offset):
    """[I, J], where the T5 bias is not the same for all pairs."""
    blocks = cuts.possible.shape
    if reach is None:
        return np.zeros(blocks, bool)
    row = np.arange(blocks[0], dtype=np.int32)[:, None] * cuts.query_block
    key = np.arange(blocks[1], dtype=np.int32)[None, :] * cuts.key_block
    least = key - (row + cuts.query_block - 1) - q_offset
    greatest = key + cuts.key_block - 1 - row - q_offset
    return (greatest > reach[0]) & (least < reach[1])


def _lists(cuts, near, keys_first: bool):
    """Visits and counts as in ``Data``, and which kinds of tiles there may be."""
    kinds, possible = cuts.kinds, cuts.possible
    xp = np if isinstance(kinds, np.ndarray) and isinstance(near, np.ndarray) else jnp
    easy = (kinds == FULL) & ~near[None]
    there = kinds != EMPTY
    there_kinds = (bool(easy.any()), bool((there & ~easy).any())) if xp is np else (True, True)
    rank = xp.where(easy, 0, xp.where(there, 1, 2))
    if keys_first:
        rank, possible = xp.swapaxes(rank, 1, 2), possible.T
    count = rank.shape[2]
    number = np.arange(count, dtype=np.int32)
    if keys_first:  # the last queries first: under a causal mask all lists are then the beginning of one
        number = number[::-1]
    # a rank and a number in one int: sorting one array is cheaper than an argsort
    order = xp.sort(rank.astype(np.int32) * np.int32(count) + number[None, None], axis=2) % np.int32(count)
    if keys_first:
        order = np.int32(count - 1) - order
    counts = xp.stack([(rank == 0).sum(2), (rank < 2).sum(2)], axis=2).astype(np.int32)
    if xp is jnp:
        return order[:, :, : max(1, int(possible.sum(1).max()))], counts, there_kinds
    order = order[:, :, : max(1, int(counts.max()))]
    longest = order[0, counts[0, :, 1].argmax()]
    if ((order == longest) | (np.arange(len(longest)) >= counts[:, :, 1:])).all():
        order = longest[None, None]  # one list for all: constants of a program that do not grow with its blocks squared
    return order, counts, there_kinds
