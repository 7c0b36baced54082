"""BERT's masking: some tokens are hidden where they stand, one by one or word by word."""

from __future__ import annotations

import functools

import numpy as np


def masked_lm(
    tokens: np.ndarray,
    rng: np.random.Generator,
    rate: float,
    vocab_size: int,
    mask_id: int,
    special_ids: tuple[int, ...] = (),
    word_starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BERT's masking: of the chosen tokens 80% become ``mask_id``, 10% a random id, 10% stay as they are.

    ``rate`` of the tokens that may be chosen are, rounded up or down at random so that the mean is exact at any length.

    Args:
      tokens: (length,) ids.
      rng: random numbers.
      rate: the share of tokens chosen.
      vocab_size: random ids lie below it.
      mask_id: hides a token.
      special_ids: never chosen, and never put in as a random id (``mask_id`` never is either).
      word_starts: (vocab_size,) whether an id begins a word: the tokens of a word are then chosen together, and each
        still hidden, replaced or kept by itself. A word also begins at the start of the text and after a special id.

    Returns:
      inputs (int32), targets (int32, the tokens), weights (float32: 1 where chosen, else 0), each (length,).
    """
    drawable, is_special = _drawable_ids(vocab_size, (*special_ids, mask_id))
    inputs = tokens.astype(np.int32)
    weights = np.zeros(len(tokens), np.float32)
    candidates = np.flatnonzero(~is_special[inputs])
    if word_starts is None:
        count = int(len(candidates) * rate + rng.random())
        chosen = candidates[rng.permutation(len(candidates))[:count]]
    else:
        begins = word_starts[inputs[candidates]]
        begins[1:] |= np.diff(candidates) > 1
        chosen = candidates[_in_chosen_words(begins, rate, rng)]
    fate = rng.random(len(chosen))
    replacements = drawable[rng.integers(len(drawable), size=len(chosen))]
    inputs[chosen] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, replacements, inputs[chosen]))
    weights[chosen] = 1.0
    return inputs, tokens.astype(np.int32), weights


def _in_chosen_words(begins: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Of (tokens,) places, of which those that ``begins`` marks begin a word, which are in words chosen at random.

    Words are taken in a random order. The one that reaches beyond ``rate`` of the tokens is taken with the chance that
    makes the mean number of tokens exact, whatever the lengths of words.
    """
    if not len(begins):
        return begins
    word = np.cumsum(begins)
    word -= word[0]
    lengths = np.bincount(word)
    order = rng.permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    wanted = len(begins) * rate
    whole = int(np.searchsorted(ends, wanted, side="right"))
    missing = wanted - (ends[whole - 1] if whole else 0)
    taken = np.zeros(len(lengths), bool)
    taken[order[:whole]] = True
    if whole < len(order):
        taken[order[whole]] = rng.random() * lengths[order[whole]] < missing
    return taken[word]


@functools.lru_cache(maxsize=8)
def _drawable_ids(vocab_size: int, special_ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    is_special = np.zeros(vocab_size, bool)
    is_special[list(special_ids)] = True
    return np.flatnonzero(~is_special).astype(np.int32), is_special
