"""Text cut or put in another order, no token changed: prefix and rest, a middle moved to the end, a random order.

An order is said by one number for each slot of a sequence, so that a mask can be made of it
(``pallas_kernels.masks.Ordered``):

    a token of the text that is r-th in the order, from 0:         2 r + 1
    a slot in which the token that is r-th is to be predicted:     -2 r, r at least 1
    padding:                                                       0

A slot with number a sees the slots with number b where 0 < b <= |a|: a token sees itself and those before it, a slot of
prediction only those before its token, and nothing sees a slot of prediction. The first token in the order has nothing
to be predicted from, and is not.
"""

from __future__ import annotations

import numpy as np


def prefix_split(length: int, rng: np.random.Generator) -> int:
    """How many of ``length`` tokens (2 or more) are the prefix: uniform in [1, length)."""
    return int(rng.integers(1, length))


def fill_in_the_middle(
    tokens: np.ndarray, rng: np.random.Generator, spm_rate: float, marker_ids: tuple[int, int, int], eos_id: int
) -> tuple[np.ndarray, int]:
    """Text with its middle moved to the end (Bavarian et al. 2022, sections 3 and 3.1).

    Two cuts, each uniform over all places with both ends, make prefix, middle and suffix, any of which may be empty.

    - PSM: PRE prefix SUF suffix MID middle EOS
    - SPM: PRE SUF suffix MID prefix middle EOS (their variant 2, which shares its markers with PSM)

    Args:
      tokens: (length,) ids; if EOS is the last of them, it stays the last.
      rng: random numbers.
      spm_rate: the chance of SPM.
      marker_ids: PRE, SUF, MID.
      eos_id: ends the middle, so that a model can say that it has met the suffix.

    Returns:
      (length + 3 or 4,) int32 ids, and how many tokens at their end are the middle and EOS.
    """
    text = tokens[:-1] if len(tokens) and tokens[-1] == eos_id else tokens
    first, last = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
    pre, suf, mid = marker_ids
    whole = np.empty(len(text) + 4, np.int32)
    suffix = len(text) - last
    if rng.random() < spm_rate:
        whole[0], whole[1], whole[2 + suffix], whole[-1] = pre, suf, mid, eos_id
        whole[2 : 2 + suffix] = text[last:]
        whole[3 + suffix : -1] = text[:last]
    else:
        whole[0], whole[1 + first], whole[2 + first + suffix], whole[-1] = pre, suf, mid, eos_id
        whole[1 : 1 + first] = text[:first]
        whole[2 + first : 2 + first + suffix] = text[last:]
        whole[3 + first + suffix : -1] = text[first:last]
    return whole, last - first + 1


def permutation_order(length: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random order of ``length`` tokens, the last ``queries`` of which are to be predicted (Yang et al. 2019,
    sections 2.2 and 2.3).

    Args:
      length: of the text.
      queries: from 0 to length - 1, or 0 for an empty text.
      rng: random numbers.

    Returns:
      (length + queries,) int32 ``order``, as the module's text says, the tokens first and the slots of prediction
      behind them; (queries,) the places in the text of the tokens to be predicted, ascending.
    """
    rank = rng.permutation(length)
    predicted = np.flatnonzero(rank >= length - queries)
    return np.concatenate([2 * rank + 1, -2 * rank[predicted]]).astype(np.int32), predicted
