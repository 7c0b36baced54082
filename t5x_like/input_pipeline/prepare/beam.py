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
from t5x_like.input_pipeline.prepare import parts
from t5x_like.input_pipeline.prepare.prepare import TokenCache, prepare_by
from t5x_like.input_pipeline.prepare.progress import Show, Tally
from t5x_like.input_pipeline.tokenizers.base import Tokenizer

# The errors of users that a worker notes; any other is a UserError.
_KINDS: dict[str, type[UserError]] = {each.__name__: each for each in (parts.BadDocument, parts.SourceChanged)}


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

    def tokenize(work: parts.Work, wanted: list[parts.Part], _: Tokenizer, tally: Tally) -> dict[int, parts.Counts]:
        folder = Path(work.folder)
        for left in folder.glob("*.error"):
            left.unlink()
        pipeline([json.dumps(to_plain(part)) for part in wanted], json.dumps(to_plain(work)))
        # A part may be finished and have an error too: Beam tries again, or twice at once.
        found = {part.number: parts.finished_part(folder, part.number, part.identity) for part in wanted}
        finished = {number: counts for number, counts in found.items() if counts is not None}
        for part in wanted:
            if counts := finished.get(part.number):
                tally.advance(part.number, counts.documents, counts.tokens, part.size)
        missing = [number for number in found if number not in finished]
        for number in missing:
            if (noted := _error_path(folder, number)).is_file():
                kind, *fields = json.loads(noted.read_text())
                raise _KINDS.get(kind, UserError)(*fields)
        if missing:
            got = f"part {missing[0]} is not in {folder}, where Beam's workers should have put it"
            raise UserError("data.cache", got, "a folder that all workers share", "set data.cache or $T5X_LIKE_CACHE")
        return finished

    return prepare_by(tokenize, corpus, tokenizer, cache, progress)


def _pipeline(options: Sequence[str]) -> Callable[[list[str], str], None]:
    """What runs Beam over parts, given as JSON like the work that they share."""
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]: optional
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]: optional
    except ImportError as error:
        got = f"Apache Beam cannot be imported: {error}"
        raise UserError("--beam", got, "", "pip install 't5x-like[beam]'") from None
    parsed = PipelineOptions(list(options))

    def run(wanted: list[str], work: str) -> None:
        try:
            made = apache_beam.Pipeline(options=parsed)
        except ValueError as error:  # an unknown runner
            raise UserError("--beam", str(error), "options of Apache Beam and of its runner") from None
        with made as pipeline:
            spread = pipeline | "Parts" >> apache_beam.Create(wanted) | "Spread" >> apache_beam.Reshuffle()
            _ = spread | "Tokenize" >> apache_beam.Map(_tokenize, work)

    return run


def _tokenize(part_json: str, work_json: str) -> int:
    """Tokenizes a part in a worker of Beam. A user's mistake is noted beside the parts: Beam would try it again."""
    work, part = from_json(parts.Work, work_json), from_json(parts.Part, part_json)
    try:
        parts.tokenize_part(work, part, _tokenizer(work_json), lambda *_: None)
    except UserError as error:
        noted = json.dumps([type(error).__name__, error.where, error.got, error.allowed, error.suggestion])
        _error_path(Path(work.folder), part.number).write_text(noted)
    return part.number


def _error_path(folder: Path, number: int) -> Path:
    return parts.part_path(folder, number).with_suffix(".error")


@functools.lru_cache(maxsize=1)
def _tokenizer(work_json: str) -> Tokenizer:
    return from_json(parts.Work, work_json).open_tokenizer()
