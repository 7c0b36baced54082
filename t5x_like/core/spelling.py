"""How values are written on the command line: ``items`` and ``unquoted`` read text, ``spell`` writes it.

Must not know what a field allows: ``core.structure`` does.
"""

from __future__ import annotations

import keyword
from typing import Any

GRAMMAR = """\
How values are written:
  numbers      1_000  6e-3  inf         yes or no  true  false        nothing  none
  text         as it stands, blanks included; in quotes it may be anything: "'none'"  "'it''s'"  '" a "'
  several      commas between them: a.txt,b.txt   (7,)   one empty text is '', no value at all is ()
               a comma inside brackets or quotes separates nothing: layer.{1,2}  [NLU],[S2S]  "'a,b',c"
               round brackets around several, and a JSON array, are no part of the values: (a,b)  ["a","b"]
  a class      its name, then its fields, in any order: optimizer=Lion optimizer.b1=0.95
               classes of a list are counted from 0: evaluations=HeldOut evaluations.0.batches=8
               a corpus may be a file with a function corpus(): data.corpus=my_corpus.py"""

HELP = "'t5x-like --help' says how values are written"
QUOTING = f"""quotes around a value with a comma: "'a,b',c"; {HELP}"""

NOTHING = ("none", "None", "null")
_QUOTES, _OPENING, _CLOSING, _BLANKS = "'\"", "([{", ")]}", " \t"
_TO_QUOTE = {*_QUOTES, *_BLANKS, ",", "\\", "\n", "\r"}  # with blanks in them brackets may be an empty JSON array


class Text(str):
    """A value, or one of several, as it stands on the command line: not yet a number, say, or in quotes."""


def items(text: str) -> list[Text]:
    """The values between the commas of a text, quotes not yet taken off.

    Raises:
      ValueError: nothing stands between two commas.
    """
    inner = text.strip(_BLANKS)
    _, pairs = _scan(inner)
    if inner == "()":
        return []
    if inner[:1] == "(" and pairs.get(0) == len(inner) - 1 and _scan(inner[1:-1])[0]:
        text = inner[1:-1]
    commas, _ = _scan(text)
    found = [text[begin + 1 : end] for begin, end in zip([-1, *commas], [*commas, len(text)], strict=True)]
    if not found[-1].strip(_BLANKS) and (len(found) > 1 or not text):  # behind the last comma
        found.pop()
    if "" in found:
        raise ValueError("nothing stands between two commas")
    return [Text(each) for each in found]


def spelled_name(field: str) -> str:
    """The name of a field as people write it: Python has keywords that no field can have as a name, so that the field
    ``from_`` is written ``from``."""
    return field[:-1] if keyword.iskeyword(field[:-1]) and field.endswith("_") else field


def unquoted(text: str) -> str:
    """The text inside quotes, if all of it stands in them; else the text itself, blanks included."""
    inner = text.strip(_BLANKS)
    if inner and _end_of_quotes(inner, 0) == len(inner):
        return inner[1:-1].replace(inner[0] * 2, inner[0])
    return str(text)


def spell(value: Any) -> str:
    """A value of a field (scalars, or tuples of them) as it is written on the command line, to be read as the same."""
    if isinstance(value, tuple):
        nested = isinstance(value[0], tuple) if value else False
        return ",".join(map(_spell_one, value)) + "," * (nested and len(value) == 1) if value else "()"
    if isinstance(value, str):
        plain = value and value not in (*NOTHING, "()", "[]") and not set(value) & _TO_QUOTE
        return value if plain and _is_balanced(value) else "'" + value.replace("'", "''") + "'"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    number = repr(value)
    return number.replace("e", ".0e") if "e+" in number and "." not in number else number  # 1e+16 is a whole number


def _spell_one(value: Any) -> str:
    """One of several."""
    return f"({spell(value)}{',' * (len(value) == 1)})" if isinstance(value, tuple) and value else spell(value)


def _is_balanced(text: str) -> bool:
    _, pairs = _scan(text)
    return 2 * len(pairs) == sum(each in _OPENING + _CLOSING for each in text)


def _scan(text: str) -> tuple[list[int], dict[int, int]]:
    """(places of commas outside brackets and quotes, place of each opening bracket to that of its closing one).

    A bracket without its partner, or behind a backslash, is a character like any other; quotes open only where a value
    begins, and only if they end where one ends."""
    commas: list[int] = []
    opened: list[int] = []
    pairs: dict[int, int] = {}
    at, begins = 0, True
    while at < len(text):
        one, end = text[at], _end_of_quotes(text, at) if begins else 0
        if end or (one == "\\" and text[at + 1 : at + 2] in (*_OPENING, *_CLOSING)):
            at, begins = end or at + 2, False
            continue
        if one == ",":
            commas.append(at)
        elif one in _OPENING:
            opened.append(at)
        elif one in _CLOSING:
            partners = [place for place in opened if text[place] == _OPENING[_CLOSING.index(one)]]
            if partners:
                pairs[partners[-1]] = at
                opened = [place for place in opened if place < partners[-1]]
        begins = one == "," or (begins and one in _BLANKS + _OPENING)
        at += 1
    return [at for at in commas if not any(begin < at < end for begin, end in pairs.items())], pairs


def _end_of_quotes(text: str, at: int) -> int:
    """The place behind the quotes that open at a place of a text, or 0: none open there, or do not end with a value."""
    if text[at : at + 1] not in ("'", '"'):
        return 0
    end = at + 1
    while (end := text.find(text[at], end)) >= 0:
        if text[end + 1 : end + 2] != text[at]:
            behind = text[end + 1 :].lstrip(_BLANKS)
            return end + 1 if not behind or behind[0] in "," + _CLOSING else 0
        end += 2
    return 0
