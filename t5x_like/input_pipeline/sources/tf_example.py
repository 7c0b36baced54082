"""The values of one feature in a serialized ``tf.train.Example``, without TensorFlow or generated code.

The messages (tensorflow/core/example/example.proto and feature.proto): an Example has Features in field 1; Features
have a map in field 1, whose entries have the name in field 1 and a Feature in field 2; a Feature has a list of bytes in
field 1, of floats in field 2 or of integers in field 3; a list of bytes has its values in field 1.
"""

from __future__ import annotations

from collections.abc import Iterator

_KINDS = {1: "bytes", 2: "floats", 3: "integers"}


def feature_names(example: bytes) -> list[str]:
    """The names of all features. Raises ``ValueError`` if ``example`` is no such message."""
    return [name.decode("utf-8", "replace") for name, _ in _features(example)]


def feature_bytes(example: bytes, name: bytes) -> list[bytes]:
    """The values of the feature ``name``, possibly none.

    Raises:
      KeyError: no feature of that name.
      TypeError: it holds numbers; the message says which.
      ValueError: ``example`` is no such message.
    """
    features = dict(_features(example))  # the last of a name counts, as in every map of protocol buffers
    values: list[bytes] = []
    for kind, start, stop in _fields(example, *features[name]):
        if kind != 1:
            raise TypeError(_KINDS.get(kind, "something unknown"))
        values += [example[first:last] for number, first, last in _fields(example, start, stop) if number == 1]
    return values


def _features(example: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The name in each entry of the map, and where its Feature begins and ends."""
    for number, start, stop in _fields(example, 0, len(example)):
        for key, first, last in _fields(example, start, stop) if number == 1 else ():
            if key == 1:
                entry = {part: (begin, end) for part, begin, end in _fields(example, first, last)}
                name, feature = (entry.get(part, (first, first)) for part in (1, 2))
                yield example[slice(*name)], feature


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
