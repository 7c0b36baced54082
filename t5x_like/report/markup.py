"""Elements of a page as text. What is not marked as ``Text`` is escaped, so that no value of a run becomes markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


class Text(str):
    """Text that is markup already."""


def escaped(content: str) -> Text:
    """Content as markup. Addresses stay readable, but the page has none that a browser would follow."""
    return content if isinstance(content, Text) else Text(html.escape(content).replace("http", "htt&#112;"))


def markup(tag: str, *content: str, kind: str = "", style: str = "", title: str = "") -> Text:
    """An element.

    Args:
      tag: its name.
      content: what is in it, text or markup.
      kind: its class in the style sheet.
      style: its own style.
      title: what shows under the pointer.
    """
    given = (("class", kind), ("style", style), ("title", title))
    attributes = "".join(f' {name}="{escaped(value)}"' for name, value in given if value)
    return Text(f"<{tag}{attributes}>{''.join(map(escaped, content))}</{tag}>")


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Text:
    """A table; on a narrow screen it is scrolled sideways."""
    head = markup("tr", *(markup("th", name) for name in names))
    body = [markup("tr", *(markup("td", cell, kind="short" * _is_short(cell)) for cell in row)) for row in rows]
    return markup("div", markup("table", head, *body), kind="scroll")


def _is_short(cell: str) -> bool:
    """Whether what is read of a cell stands in one line."""
    return len(re.sub("<[^>]*>", "", cell) if isinstance(cell, Text) else cell) < 26


def figure(title: str, drawn: str, note: str, legend: Sequence[tuple[str, str]] = ()) -> Text:
    """A picture with its title, (name, colour) of its lines, and a sentence on what it means."""
    named = [markup("span", markup("span", kind="box", style=f"background:{colour}"), name, kind="entry")
             for name, colour in dict.fromkeys(legend)]  # fmt: skip
    return markup("figure", markup("figcaption", title), markup("div", *named, kind="legend") if named else "",
                  Text(drawn), markup("p", note, kind="note"))  # fmt: skip


def details(title: str, content: Text) -> Text:
    """What opens when its title is clicked."""
    return markup("details", markup("summary", title), content)
