"""``prepare`` as an Apache Beam pipeline (extra ``beam``), for corpora that outgrow a machine.

Beam's workers, wherever its runner starts them (Flink, Spark, Dataflow), do what processes of this machine do:
tokenize parts into the work folder; this process cuts the corpus into parts before and merges them after. So the cache
is the same, bit by bit. Must not know what a part is made of.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from t5x_like.core.config import from_json, to_plain
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Corpus, TokenizerConfig
from t5x_like.input_pipeline.prepare.parts import (
    BadDocument,
    Counts,
    Part,
    SourceChanged,
    Work,
    finished_part,
    part_path,
    tokenize_part,
)
from t5x_like.input_pipeline.prepare.prepare import TokenCache, prepare_by
from t5x_like.input_pipeline.prepare.progress import Show, Tally
from t5x_like.input_pipeline.tokenizers.base import Tokenizer

# The errors of users that a worker notes, the most particular first.
ERROR_KINDS: dict[str, type[UserError]] = {"bad": BadDocument, "changed": SourceChanged, "error": UserError}


def plain_error(error: UserError) -> tuple[str, list[str]]:
    """The kind of an error, a key of ``ERROR_KINDS``, and what it is made of; both go to JSON."""
    kind = next(name for name, kind in ERROR_KINDS.items() if isinstance(error, kind))
    return kind, [error.where, error.got, error.allowed, error.suggestion]


def prepare_with_beam(
    corpus: Corpus, tokenizer: TokenizerConfig, cache: str = "", options: Sequence[str] = (),
    progress: Show | None = None,
) -> TokenCache:  # fmt: skip
    """The token cache of ``corpus`` as ``prepare`` makes it, its parts tokenized by Apache Beam.

    Beam's workers need this package, the source, the tokenizer's file and the cache folder at the same paths as here:
    on storage that all of them share. The documents of a Python function are tokenized by this process.

    Args:
      corpus, tokenizer, cache: as for ``prepare``.
      options: options of Beam, such as ``--runner=FlinkRunner``; none runs on this machine.
      progress: as for ``prepare``; not called while Beam is at work.

    Raises:
      UserError: as ``prepare``; or Beam is not installed, or its workers do not share the cache folder.
    """
    pipeline = _pipeline(options)

    def tokenize(work: Work, parts: list[Part], _: Tokenizer, tally: Tally) -> dict[int, Counts]:
        folder = Path(work.folder)
        for left in folder.glob("*.error"):
            left.unlink()
        pipeline([json.dumps(to_plain(part)) for part in parts], json.dumps(to_plain(work)))
        finished: dict[int, Counts] = {}
        missing: list[int] = []
        for part in parts:
            # A part may be finished and have an error too: Beam tries again, or twice at once.
            counts = finished_part(folder, part.number, part.identity)
            if counts is None:
                missing.append(part.number)
            else:
                finished[part.number] = counts
                tally.advance(part.number, counts.documents, counts.tokens, part.size)
        for number in missing:
            if (noted := _error_path(folder, number)).is_file():
                kind, fields = json.loads(noted.read_text())
                raise ERROR_KINDS[kind](*fields)
        if missing:
            raise UserError(
                "data.cache", f"part {missing[0]} is not in {folder}, where Beam's workers should have put it",
                "a folder that all workers share", "set data.cache or $T5X_LIKE_CACHE",
            )  # fmt: skip
        return finished

    return prepare_by(tokenize, corpus, tokenizer, cache, progress)


def _pipeline(options: Sequence[str]) -> Callable[[list[str], str], None]:
    """What runs Beam over parts, given as JSON like the work that they share."""
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--beam", f"Apache Beam cannot be imported: {error}", "", "pip install 't5x-like[beam]'"
        ) from None
    parsed = PipelineOptions(list(options))

    def run(parts: list[str], work: str) -> None:
        try:
            made = apache_beam.Pipeline(options=parsed)
        except ValueError as error:  # an unknown runner
            raise UserError("--beam", str(error), "options of Apache Beam and of its runner") from None
        with made as pipeline:
            _ = (
                pipeline
                | "Parts" >> apache_beam.Create(parts)
                | "Spread" >> apache_beam.Reshuffle()
                | "Tokenize" >> apache_beam.Map(_tokenize, work)
            )

    return run


def _tokenize(part_json: str, work_json: str) -> int:
    """Tokenizes a part in a worker of Beam. A user's mistake is noted beside the parts: Beam would try it again."""
    work, part = from_json(Work, work_json), from_json(Part, part_json)
    try:
        tokenize_part(work, part, _tokenizer(work_json), lambda *_: None)
    except UserError as error:
        _error_path(Path(work.folder), part.number).write_text(json.dumps(plain_error(error)))
    return part.number


def _error_path(folder: Path, number: int) -> Path:
    return part_path(folder, number).with_suffix(".error")


@functools.lru_cache(maxsize=1)
def _tokenizer(work_json: str) -> Tokenizer:
    return from_json(Work, work_json).open_tokenizer()
