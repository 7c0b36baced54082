"""CRC32C (Castagnoli) of bytes, with numpy: no package for it comes with the library's dependencies.

A CRC without its initial and final inversion is linear, so it is the XOR of what each byte adds at its distance from
the end. A table of that for every byte value and the last ``_BLOCK`` distances makes a block one lookup and one XOR; a
table that moves a CRC on by ``_BLOCK`` bytes joins blocks. Checked against RFC 3720, appendix B.4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_BLOCK = 2048  # a table of 2 MB: larger ones no longer fit the cache of a core
_BLOCKS_AT_ONCE = 16  # places are 8 bytes each for numpy, so that 32 kB of data are 256 kB of them


@lru_cache(maxsize=1)
def _byte_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """What each byte adds, in one row for each of the last ``_BLOCK`` places; where rows begin; tables that move on."""
    one = np.array(_byte_table(), np.uint32)
    places = np.empty((_BLOCK, 256), np.uint32)
    places[-1] = one
    for place in range(_BLOCK - 2, -1, -1):
        places[place] = _after_a_zero(one, places[place + 1])
    # A CRC that a block follows is like the bytes of the CRC themselves, then _BLOCK - 4 bytes.
    moved = [places[byte].tolist() for byte in range(4)]
    return places.reshape(-1), np.arange(_BLOCK, dtype=np.intp) * 256, moved


def _after_a_zero(one: np.ndarray, crc: np.ndarray) -> np.ndarray:
    return one[crc & 0xFF] ^ (crc >> 8)


def crc32c(data: bytes) -> int:
    """The CRC32C of ``data``, from 0 to 2**32 - 1."""
    places, rows, moved = _tables()
    head = data[: len(data) % _BLOCK or _BLOCK]
    if len(head) < 32:  # numpy is no faster, and the initial inversion needs 4 bytes
        crc = 0xFFFFFFFF
        for byte in head:
            crc = _byte_table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    else:
        values = np.frombuffer(head, np.uint8).astype(np.intp)
        values[:4] ^= 0xFF  # the initial inversion
        crc = int(np.bitwise_xor.reduce(places.take(rows[_BLOCK - len(head) :] + values)))
    for start in range(len(head), len(data), _BLOCK * _BLOCKS_AT_ONCE):
        part = np.frombuffer(data[start : start + _BLOCK * _BLOCKS_AT_ONCE], np.uint8)
        for block in np.bitwise_xor.reduce(places.take(rows + part.reshape(-1, _BLOCK)), axis=1).tolist():
            crc = moved[0][crc & 255] ^ moved[1][crc >> 8 & 255] ^ moved[2][crc >> 16 & 255] ^ moved[3][crc >> 24]
            crc ^= block
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """As TFRecord files store it: rotated by 15 bits, plus a constant, so that a CRC of CRCs is sound."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
