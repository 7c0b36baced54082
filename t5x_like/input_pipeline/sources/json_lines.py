"""JSON lines: one object per line, with the text in one field. Also the text of a JSON object found elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.files import Unit, line_units, packed_too
from t5x_like.input_pipeline.sources.messages import half_character, no_column
from t5x_like.input_pipeline.sources.source import FileSource
from t5x_like.input_pipeline.sources.text import Lines


@dataclass(frozen=True)
class JsonLines(FileSource):
    """Files with one JSON object per line, plain or compressed; one object is one document.

    Attributes:
      paths: files, folders (every ``*.jsonl``, ``*.ndjson``, ``*-of-*.json`` and compressed ``*.json`` below them) or
        glob patterns.
      field: the key that holds the text.
    """

    field: str = "text"

    patterns: ClassVar[tuple[str, ...]] = (
        *packed_too("*.jsonl", "*.ndjson"), *packed_too("*.json")[1:], "*-of-*.json",  # others are no lines, mostly
    )  # fmt: skip

    def units(self) -> list[Unit]:
        return line_units(self.files())

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        lines = Lines(unit)
        for number, line in lines.filled():
            text = line if isinstance(line, UserError) else json_text(line, self.field)
            if text is None:
                yield json_error(f"{unit.file}, {lines.place(number)}", str(line), self.field)
            else:
                yield text


# What other fields hold does not matter: a whole number of thousands of digits, which Python refuses, is none of ours.
_decode = json.JSONDecoder(parse_int=lambda digits: 0).decode


def json_text(record: str, field: str) -> str | None:
    """The text in ``field`` of a JSON object, empty where that is null; ``None`` where ``json_error`` knows why not."""
    try:
        text = _decode(record)[field]
        if text is None:
            return ""
        if isinstance(text, str):
            if "\\u" in record:  # JSON can spell half a character: "\\ud800"
                text.encode("utf-8")
            return text
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return None


def json_error(where: str, record: str, field: str) -> UserError:
    """Why ``record`` has no text in ``field``."""
    try:
        found = _decode(record)
    except (ValueError, RecursionError) as error:
        return UserError(where, f"not JSON: {error}", "one JSON object")
    if not isinstance(found, dict):
        return UserError(where, f"a JSON {type(found).__name__}", "a JSON object with the text in a field")
    if field not in found:
        return no_column(where, "field", field, list(found))
    if not isinstance(found[field], str):
        return UserError(where, f"field {field!r} holds a {type(found[field]).__name__}", "a string")
    return half_character(where, f"field {field!r}")
