"""A batch as text for people: each row's inputs and targets decoded, and what every stretch of them is.

Knows features and tokenizers; must not know terminals, colours or sources: it names the role of each stretch of text;
``report.batches`` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from t5x_like.input_pipeline.batches.features import Batch
from t5x_like.input_pipeline.tokenizers.base import Tokenizer

Role = Literal["text", "loss", "faint", "prefix"]

# Tokens that a stretch is decoded behind, so that spaces and characters of several tokens come out as in the whole.
_CONTEXT = 8
_SENTINEL = re.compile(r"(<extra_id_\d+>)")


class Stretch(NamedTuple):
    """A piece of a line.

    Attributes:
      text: printable; what is not, and the backslash, is written as in Python's strings: a newline as ``\\n``.
      role: ``loss``: with a weight above 0 beside others without, ``faint``: weight 0, ``prefix``: seen in both
        directions, ``text``: none of these.
      special: a sentinel, mask, EOS or other id that no text is made of.
    """

    text: str
    role: Role
    special: bool


class Field(NamedTuple):
    """One line of a row.

    Attributes:
      segment: the segment of the row it belongs to, from 1.
      name: ``inputs``, ``prefix``, ``targets``; ``no loss`` for targets that all have weight 0.
      stretches: stretches of text of the line.
    """

    segment: int
    name: str
    stretches: list[Stretch]

    @property
    def text(self) -> str:
        """All of it, without marks."""
        return "".join(stretch.text for stretch in self.stretches)


def fill(batch: Batch) -> dict[str, np.ndarray]:
    """Side (``encoder``, ``decoder``) to the (rows,) shares of each row's slots that are not padding."""
    sides = [name.removesuffix("_segments") for name in batch if name.endswith("_segments")]
    return {side: (batch[f"{side}_segments"] != 0).mean(axis=1) for side in sides}


def show_row(batch: Batch, row: int, tokenizer: Tokenizer) -> list[Field]:
    """What is read and what is predicted in a row, segment by segment.

    Where an encoder stands alone, the places with weight are marked in its inputs too; in a random order, the targets
    come in the order in which they are predicted.

    Raises:
      IndexError: no such row.
    """
    if not 0 <= row < len(batch["targets"]):
        raise IndexError(f"row {row} of a batch of {len(batch['targets'])}")
    one = {name: array[row] for name, array in batch.items()}
    segments = [array for name, array in one.items() if name.endswith("_segments")]
    names = _special_names(tokenizer, alone="decoder_tokens" not in one)
    fields: list[Field] = []
    for segment in range(1, max(int(array.max()) for array in segments) + 1):
        write = _encoder_fields if "decoder_tokens" not in one else _decoder_fields
        for name, ids, roles in write(one, segment):
            fields.append(Field(segment, name, _stretches(ids.tolist(), roles, names, tokenizer)))
        if "encoder_order" in one:
            fields.append(Field(segment, "targets", _ordered_targets(one, segment, names, tokenizer)))
    return fields


def row_summary(batch: Batch, row: int) -> str:
    """How full a row is, in words."""
    parts = []
    for side in fill(batch):
        segments = batch[f"{side}_segments"][row]
        parts.append(f"{side} {np.count_nonzero(segments):,} of {segments.size:,} slots")
    return f"{', '.join(parts)}, loss on {np.count_nonzero(batch['weights'][row]):,} targets"


# Within

_Written = list[tuple[str, np.ndarray, list[Role]]]  # name, ids, role of each


def _decoder_fields(row: Batch, segment: int) -> _Written:
    fields: _Written = []
    if "encoder_tokens" in row:
        inputs = row["encoder_tokens"][row["encoder_segments"] == segment]
        fields.append(("inputs", inputs, ["text"] * len(inputs)))
    mine = row["decoder_segments"] == segment
    targets, weights = row["targets"][mine], row["weights"][mine]
    if "decoder_prefix" in row:
        # The prefix is read one place late, behind the start token, which is visible with it.
        prefix = max(0, int(np.count_nonzero(row["decoder_prefix"][mine])) - 1)
        prefix = prefix if weights.any() else len(targets)
        if prefix:
            fields.append(("prefix", targets[:prefix], ["prefix"] * prefix))
        targets, weights = targets[prefix:], weights[prefix:]
    if len(targets):
        fields.append(("targets" if weights.any() else "no loss", targets, _roles(weights)))
    return fields


def _encoder_fields(row: Batch, segment: int) -> _Written:
    mine = row["encoder_segments"] == segment
    if "encoder_order" in row:  # the text, in which the tokens that slots of prediction stand for are marked
        text, slots = mine & (row["encoder_order"] > 0), mine & (row["encoder_order"] < 0)
        predicted = np.isin(row["encoder_positions"][text], row["encoder_positions"][slots])
        return [("inputs", row["encoder_tokens"][text], ["loss" if each else "text" for each in predicted])]
    weights = row["weights"][mine]
    inputs: list[Role] = ["loss" if weight > 0 else "text" for weight in weights]
    shown = ("targets" if weights.any() else "no loss", row["targets"][mine], _roles(weights))
    return [("inputs", row["encoder_tokens"][mine], inputs), shown]


def _roles(weights: np.ndarray) -> list[Role]:
    if weights.all():
        return ["text"] * len(weights)
    return ["loss" if weight > 0 else "faint" for weight in weights]


def _ordered_targets(row: Batch, segment: int, names: Mapping[int, str], tokenizer: Tokenizer) -> list[Stretch]:
    slots = np.flatnonzero((row["encoder_segments"] == segment) & (row["encoder_order"] < 0))
    slots = slots[np.argsort(-row["encoder_order"][slots])]
    shown: list[Stretch] = []
    for identifier in row["targets"][slots].tolist():
        if shown:
            shown.append(Stretch(" | ", "faint", False))
        shown += _stretches([identifier], ["text"], names, tokenizer)
    return shown


def _special_names(tokenizer: Tokenizer, alone: bool) -> dict[int, str]:
    """What is written for ids that no text is made of.

    Sentinels and masks that share their ids with bytes are not among them: the decoder tells them by what is around
    them. But a mask before an encoder that stands ``alone`` can be nothing else.
    """
    names = {identifier: tokenizer.piece(identifier) for identifier in tokenizer.special_ids}
    names |= {each: f"<extra_id_{i}>" for i, each in enumerate(tokenizer.sentinel_ids) if each in names}
    if alone and tokenizer.mask_id is not None:
        names.setdefault(tokenizer.mask_id, "<mask>")
    return names


def _stretches(
    ids: Sequence[int], roles: Sequence[Role], names: Mapping[int, str], tokenizer: Tokenizer
) -> list[Stretch]:
    stretches: list[Stretch] = []
    hidden = not names.keys() >= set(tokenizer.sentinel_ids)
    start = 0
    while start < len(ids):
        end, role = start + 1, roles[start]
        if ids[start] in names:
            stretches.append(Stretch(names[ids[start]], role, True))
        else:
            while end < len(ids) and roles[end] == role and ids[end] not in names:
                end += 1
            text = _decode(ids, start, end, tokenizer)
            # Every second part of what is split this way is a sentinel.
            for number, part in enumerate(_SENTINEL.split(text) if hidden else [text]):
                if part:
                    stretches.append(Stretch(_printable(part), role, number % 2 == 1))
        start = end
    return stretches


def _decode(ids: Sequence[int], start: int, end: int, tokenizer: Tokenizer) -> str:
    before = list(ids[max(0, start - _CONTEXT) : start])
    known, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids[start:end]])
    return whole[len(known) :] if whole.startswith(known) else tokenizer.decode(ids[start:end])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
