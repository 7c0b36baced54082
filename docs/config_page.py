"""Writes config.md, the page of every config field: ``python docs/config_page.py`` after a change of fields."""

from __future__ import annotations

import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import t5x_like.config  # noqa: F401, all choices are loaded
from t5x_like.cli.fields import fields_of
from t5x_like.core.spelling import GRAMMAR
from t5x_like.core.structure import choices, classes_in, is_shipped, type_hints
from t5x_like.train.config import Run

PAGE = Path(__file__).with_name("config.md")
HEAD = """\
# Every field of a config

Made by `docs/config_page.py` from the classes themselves; a test checks that it is up to date. What a run has of it,
with its values: `t5x-like inspect config CONFIG`. Fields are named from the run down: `optimizer.schedule.warmup`.

```
{grammar}
```

| class | where in a run |
|---|---|
{contents}
"""


def classes(hint: object, where: str = "", above: tuple[type, ...] = ()) -> Iterator[tuple[type, str]]:
    """(class, dotted field) of every shipped class that a hint allows, and of those in its fields."""
    for inner in typing.get_args(hint):
        yield from classes(inner, where, above)
    for kind in choices(*classes_in(hint)):
        if is_shipped(kind) and kind not in above:
            yield kind, where
            for name, each in type_hints(kind).items():
                if name in fields_of(kind):
                    dotted = f"{where}.{name}" if where else name
                    several = typing.get_origin(each) is tuple
                    yield from classes(each, f"{dotted}.0" if several else dotted, (*above, kind))


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    mark = "``" if "`" in text else "`"
    return f"{mark}{cell(text)}{mark}" if text else ""


def section(kind: type, places: list[str]) -> str:
    """A heading, what the class is for, a table of its fields."""
    about = textwrap.dedent(inspect.cleandoc(kind.__doc__ or "")).split("\n\n")[0]
    lines = [f"## {kind.__name__}", "", about, "", ", ".join(map(code, places)) or "the whole run", ""]
    if fields := fields_of(kind):
        lines += ["| field | allowed | default | meaning |", "|---|---|---|---|"]
        for field in fields.values():
            default = code(field.default) if field.default else "must be given"
            lines.append(f"| `{field.name}` | {cell(field.allowed)} | {default} | {cell(field.meaning)} |")
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The page. Raises SystemExit for a field that no docstring explains."""
    places: dict[type, list[str]] = {}
    for kind, where in classes(Run):
        if where not in places.setdefault(kind, []):
            places[kind].append(where)
    known = {f"{kind.__name__}.{name}": field for kind in places for name, field in fields_of(kind).items()}
    if silent := [name for name, field in known.items() if not field.meaning]:
        raise SystemExit(f"without a meaning in the docstring of their class: {', '.join(silent)}")
    shown = {kind: [where for where in found if where][:4] for kind, found in places.items()}
    contents = "\n".join(
        f"| [{kind.__name__}](#{kind.__name__.lower()}) | {code(found[0]) if found else 'the whole run'} |"
        for kind, found in shown.items()
    )
    head = HEAD.format(grammar=GRAMMAR, contents=contents)
    return "\n".join([head, *(section(kind, found) for kind, found in shown.items())])


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is out of date: python {__file__}")
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
