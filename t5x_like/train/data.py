"""A run's text, opened: tokenizer, token caches, and the batches of both splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

from t5x_like.core.errors import refuse
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.input_pipeline.batches.windows import Windows
from t5x_like.input_pipeline.config import Corpus, DataConfig, corpora
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.progress import Show
from t5x_like.input_pipeline.prepare.token_cache import TokenCache, TokenSplit
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import check_vocabulary, open_tokenizer
from t5x_like.train.config import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A run's text: tokenized, split, mixed, ordered.

    Attributes:
      tokenizer: the vocabulary of all corpora.
      fingerprint: digest of the tokens of every corpus; equal exactly where they are.
      train: batches of the training split.
      held_out: batches of the held-out split; None where nothing is held out.
      caches: token cache of each corpus, by name; of an endless corpus, that of its held-out documents.
      held_out_split: held-out documents of the first corpus that has any.
    """

    tokenizer: Tokenizer
    fingerprint: str
    train: Batches | Windows
    held_out: Batches | None
    caches: dict[str, TokenCache]
    held_out_split: TokenSplit | None

    @classmethod
    def open(cls, run: Run, show: Show | None = None, note: Callable[[str], None] | None = None) -> Data:
        """Prepares the corpora that are not prepared. Raises UserError as ``prepare`` and ``Batches`` do.

        Args:
          run: the config.
          show: function of the progress of a preparation.
          note: function of a line of text, called when a tokenizer is trained.
        """
        data = run.data
        config = tokenizer_config(data.corpus, data.cache, note)
        tokenizer = open_tokenizer(config)
        check_vocabulary(tokenizer, run.model.vocab_size)
        common = (tokenizer, run.objective, data, run.model.shape, run.train.batch_size)
        if isinstance(data.corpus, Corpus) and data.corpus.window:
            corpus, caches = data.corpus, {}
            if corpus.heldout:
                caches[corpus.name] = prepare(corpus.window_of(0, "heldout"), config, data.cache, show)
            kept = {name: cache.split("train") for name, cache in caches.items()}

            def make(splits: dict, seed: int) -> Batches:
                return Batches(splits, *common, seed)

            train = Windows(corpus, config, make, data, (common[1], *common[3:]), run.train.seed, show)
            fingerprint = train.fingerprint
        else:
            processes = data.prepare_processes
            caches = {c.name: prepare(c, config, data.cache, show, processes) for c in corpora(data.corpus)}
            train = Batches({name: cache.split("train") for name, cache in caches.items()}, *common, run.train.seed)
            kept = {c.name: caches[c.name].split("heldout") for c in corpora(data.corpus) if c.heldout}
            fingerprint = _fingerprint(caches)
        held_out = Batches(kept, *common, 0, shuffle=False) if kept else None
        return cls(tokenizer, fingerprint, train, held_out, caches, next(iter(kept.values()), None))

    @property
    def facts(self) -> dict[str, str]:
        """What must be equal in all processes of a job: digests of tokens and of the tokenizer."""
        caches = {name: cache.fingerprint for name, cache in self.caches.items()}
        return {"all texts": self.fingerprint, "tokenizer": self.tokenizer.fingerprint, **caches}


def data_step(data: DataConfig, step: int) -> int:
    """The number of the batch that is trained on at ``step``, skipped ones counted."""
    for first, end in data.skipped():
        step += (end - first) * (first <= step)
    return step


def check_skipped(before: DataConfig, now: DataConfig, step: int) -> None:
    """Raises UserError unless the batches of the first ``step`` steps are the same with both ``data.skip``."""
    taken = data_step(before, step - 1) + 1 if step else 0
    old, new = ([(a, min(b, taken)) for a, b in data.skipped() if a < taken] for data in (before, now))
    wanted, made = ", ".join(now.skip) or "nothing", ", ".join(before.skip) or "nothing skipped"
    refuse(old != new, "data.skip", f"{wanted}; the run has trained on batches before {taken:,} with {made}",
           f"the same up to there, and ranges from {taken:,} on")


def _fingerprint(caches: Mapping[str, TokenCache]) -> str:
    found = [cache.fingerprint for cache in caches.values()]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()
