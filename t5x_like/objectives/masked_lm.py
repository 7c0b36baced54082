"""BERT's pretraining: some tokens are masked in place, one by one or word by word, and the encoder predicts them.
Knows ids and lengths."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import require
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective, Share, require_mask_id, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Masked language modelling as in BERT (Devlin et al. 2019, section 3.1), without next-sentence prediction.

    Of the chosen tokens 80% are masked, 10% replaced at random and 10% kept; the loss is on all of the chosen ones, by
    explicit weights, since a kept token is not recognized by its id. Each document ends in EOS, which is never chosen.

    Attributes:
      mask_rate: share of tokens chosen.
      whole_words: whether the tokens of a word are chosen together, as in BERT's later models.
    """

    mask_rate: Share = 0.15
    whole_words: bool = False

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-only",)

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no mask id, no EOS, a target length, whole words of a vocabulary that begins none."""
        super().check(tokenizer, data, shape)
        require_special_ids(tokenizer, {"<mask>": require_mask_id(tokenizer)})
        got, allowed = "true, but no piece of the vocabulary begins a word", "a tokenizer that marks where words begin"
        fits = not self.whole_words or bool(tokenizer.word_starts.any())
        require(fits, "objective.whole_words", got, allowed, "objective.whole_words=false")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the tokens after masking; targets: the tokens; weights: 1 where chosen."""
        starts, size = tokenizer.word_starts if self.whole_words else None, tokenizer.vocab_size
        mask_id = require_mask_id(tokenizer)
        return Example(*masked_lm(tokens, rng, self.mask_rate, size, mask_id, tokenizer.special_ids, starts))


def masked_lm(
    tokens: np.ndarray, rng: np.random.Generator, rate: float, vocab_size: int, mask_id: int,
    special_ids: tuple[int, ...] = (), word_starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """BERT's masking: of the chosen tokens 80% become ``mask_id``, 10% a random id, 10% stay as they are.

    ``rate`` of the tokens that may be chosen are, rounded up or down at random so that the mean is exact at any length.

    Args:
      tokens: (length,) ids.
      rng: random numbers.
      rate: share of tokens chosen.
      vocab_size: upper bound of random ids.
      mask_id: id of a masked token.
      special_ids: ids never chosen, and never used as a random id (nor is ``mask_id``).
      word_starts: (vocab_size,) whether an id begins a word: the tokens of a word are then chosen together, and each
        masked, replaced or kept by itself. A word also begins at the start of the text and after a special id.

    Returns:
      inputs (int32), targets (int32, the tokens), weights (float32: 1 where chosen, else 0), each (length,).
    """
    import numpy as np

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
    """(tokens,) bool: tokens of words chosen at random; ``begins`` (tokens,) marks the first token of each word.

    Words are taken in a random order. The one that reaches beyond ``rate`` of the tokens is taken with the chance that
    makes the mean number of tokens exact, whatever the lengths of words.
    """
    import numpy as np

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
    import numpy as np

    is_special = np.zeros(vocab_size, bool)
    is_special[list(special_ids)] = True
    return np.flatnonzero(~is_special).astype(np.int32), is_special
