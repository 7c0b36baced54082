"""The values of one feature in a serialized ``tf.train.Example``, without TensorFlow or generated code.

The messages (tensorflow/core/example/example.proto and feature.proto): an Example has Features in field 1; Features
have a map in field 1, whose entries have the name in field 1 and a Feature in field 2; a Feature has a list of bytes in
field 1, of floats in field 2 or of integers in field 3; a list of bytes has its values in field 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

_KINDS = {1: "bytes", 2: "floats", 3: "integers"}


def feature_names(example: bytes) -> list[str]:
    """The names of all features. Raises ``ValueError`` if ``example`` is no such message."""
    names = (_name_and_feature(example, start, stop)[0] for start, stop in _entries(example))
    return [name.decode("utf-8", "replace") for name in names]


def feature_bytes(example: bytes, name: bytes) -> list[bytes]:
    """The values of the feature ``name``, possibly none.

    Raises:
      KeyError: no feature of that name.
      TypeError: it holds numbers; the message says which.
      ValueError: ``example`` is no such message.
    """
    begin = _begin_of_entry(name)
    feature = None
    for start, stop in _entries(example):  # the last one counts, as in every map of protocol buffers
        # Every writer puts the name first, so that it need not be taken apart; a reader may not rely on that.
        if example.startswith(begin, start) or (
            example[start : start + 1] != b"\n" and _name_and_feature(example, start, stop)[0] == name
        ):
            feature = _name_and_feature(example, start, stop)[1]
    if feature is None:
        raise KeyError(name)
    values: list[bytes] = []
    for kind, start, stop in _fields(example, *feature):
        if kind != 1:
            raise TypeError(_KINDS.get(kind, "something unknown"))
        values += [example[first:last] for number, first, last in _fields(example, start, stop) if number == 1]
    return values


def _entries(example: bytes) -> Iterator[tuple[int, int]]:
    """Where each entry of the map begins and ends."""
    for number, start, stop in _fields(example, 0, len(example)):
        if number == 1:
            for entry, first, last in _fields(example, start, stop):
                if entry == 1:
                    yield first, last


def _name_and_feature(example: bytes, start: int, stop: int) -> tuple[bytes, tuple[int, int]]:
    """The name in an entry, and where its Feature begins and ends."""
    name, feature = b"", (start, start)
    for number, first, last in _fields(example, start, stop):
        if number == 1:
            name = example[first:last]
        elif number == 2:
            feature = first, last
    return name, feature


@lru_cache(maxsize=16)
def _begin_of_entry(name: bytes) -> bytes:
    """The bytes of an entry's name as a writer puts them: field 1, its length, itself."""
    length, count = b"", len(name)
    while count > 127:
        length, count = length + bytes([count & 127 | 128]), count >> 7
    return b"\n" + length + bytes([count]) + name


def _fields(data: bytes, position: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and one past the last of each field with a length; other kinds of field are passed over."""
    try:
        while position < stop:
            tag, position = _varint(data, position)
            wire = tag & 7
            if wire == 2:
                length, position = _varint(data, position)
                if position + length > stop:
                    break
                yield tag >> 3, position, position + length
                position += length
            elif wire == 0:
                _, position = _varint(data, position)
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                break
    except IndexError:
        pass
    if position != stop:
        raise ValueError("not a tf.train.Example")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 128:
        return byte, position + 1
    value, shift = byte & 127, 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + 1
        shift += 7
