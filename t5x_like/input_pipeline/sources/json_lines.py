"""JSON lines: one object per line, of which one field is the text. Also the text of a JSON object found elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.config import JsonLines
from t5x_like.input_pipeline.sources.files import Unit
from t5x_like.input_pipeline.sources.messages import half_character, no_column
from t5x_like.input_pipeline.sources.text import Lines

JSON_LINES_PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst")


def read_json_lines(source: JsonLines, unit: Unit) -> Iterator[str | UserError]:
    """The texts of the lines that begin in the unit; an empty line is none."""
    lines = Lines(unit)
    for number, line in lines.filled():
        text = line if isinstance(line, UserError) else json_text(line, source.field)
        if text is None:
            yield json_error(f"{unit.file}, {lines.place(number)}", str(line), source.field)
        else:
            yield text


def json_text(record: str, field: str) -> str | None:
    """The text in ``field`` of a JSON object, empty where that is null; ``None`` where ``json_error`` knows why not."""
    try:
        text = json.loads(record)[field]
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
        found = json.loads(record)
    except (ValueError, RecursionError) as error:
        return UserError(where, f"not JSON: {error}", "one JSON object")
    if not isinstance(found, dict):
        return UserError(where, f"a JSON {type(found).__name__}", "a JSON object with the text in a field")
    if field not in found:
        return no_column(where, "field", field, list(found))
    if not isinstance(found[field], str):
        return UserError(where, f"field {field!r} holds a {type(found[field]).__name__}", "a string")
    return half_character(where, f"field {field!r}")
