"""Parameters by regular expressions. Knows paths only; must not know their use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from t5x_like.core.errors import UserError


def matching(where: str, patterns: Iterable[str], paths: Collection[str], optional: Collection[str] = ()) -> set[str]:
    """The paths in which any of the patterns is found (``re.search``; anchor with ^ and $ to match whole paths).

    Args:
      where: config field of the patterns, for errors.
      patterns: regular expressions.
      paths: "/"-joined paths of parameters.
      optional: patterns that may match nothing.

    Raises:
      UserError: a pattern is no regular expression, or matches nothing and is not ``optional``.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(where, f"{pattern!r} is not a regular expression: {error}", "Python's re syntax",
                            "a part of a path, such as 'encoder/'") from None
        hits = {path for path in paths if expression.search(path)}
        if not hits and pattern not in optional:
            raise UserError(where, f"{pattern!r} matches no parameter", "a pattern found in at least one path",
                            f"the nearest paths: {', '.join(_nearest(pattern, paths))}")
        found |= hits
    return found


def _nearest(pattern: str, paths: Collection[str]) -> list[str]:
    """The paths most like a pattern, judged by its letters alone and by the best fitting stretch of each path."""
    plain = re.sub(r"[^\w/]+", "", pattern).lower()

    def likeness(path: str) -> float:
        parts = path.lower().split("/")
        length = max(1, plain.count("/") + (not plain.startswith("/")))
        stretches = ["/".join(parts[start : start + length]) for start in range(max(1, len(parts) - length + 1))]
        return max(difflib.SequenceMatcher(None, plain, stretch).ratio() for stretch in stretches)

    return sorted(paths, key=likeness, reverse=True)[:3]
