"""A run's text, opened: tokenizer, token cache, and the batches of both splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from t5x_like.input_pipeline.pipeline import Batches
from t5x_like.input_pipeline.prepare import Progress, TokenCache, prepare
from t5x_like.input_pipeline.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from t5x_like.train.config import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A run's text: tokenized, split, ordered."""

    tokenizer: Tokenizer
    cache: TokenCache
    train: Batches
    held_out: Batches | None  # None where the corpus keeps nothing back

    @classmethod
    def open(cls, run: Run, progress: Callable[[Progress], None] | None = None) -> Data:
        """Prepares the corpus if that has not been done. Raises UserError as ``prepare`` and ``Batches`` do."""
        cache = prepare(run.data.corpus, run.data.cache, progress)
        tokenizer = load_tokenizer(run.data.corpus, run.data.cache)
        check_vocabulary(tokenizer, run.model.vocab_size)
        common = (tokenizer, run.objective, run.data, run.model.shape, run.train.batch_size)
        train = Batches(cache.split("train"), *common, run.train.seed)
        held_out = Batches(cache.split("heldout"), *common, 0, shuffle=False) if run.data.corpus.heldout else None
        return cls(tokenizer, cache, train, held_out)
