"""The order of examples, and the random numbers of each: computed from keys, not stored.

A keyed permutation of range(n) needs no memory and no start-up whatever n is, and gives the i-th place at once: that is
what lets a run jump to any step. Knows indices only, no data.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np

from t5x_like.core.errors import require

# Bump when any batch of any run would change; a run resumes only under the rules that it was begun with.
ORDER_VERSION = 1
_ROUNDS = 6
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)  # the mixing constants of SplitMix64
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


def permutation(n: int, seed: int | tuple[int, ...]) -> Permutation:
    """A pseudo-random permutation of range(n), the same for the same ``n`` and ``seed`` on every machine.

    Raises:
      UserError: a negative or non-integer seed, or ``n`` below 1.
    """
    return Permutation(n, seed)


class Permutation:
    """A one-to-one mapping of range(n) onto itself; call it with positions, get indices.

    A Feistel network over the next even number of bits, whose results outside range(n) are mapped again until they fall
    inside ("cycle walking", at most 4 times as many in the mean), so it is exactly one-to-one. Source: Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
    """

    def __init__(self, n: int, seed: int | tuple[int, ...]):
        require(n >= 1, "order", f"a permutation of {n} items", "at least 1")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.shake_256(repr((n, checked_seed(seed))).encode()).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, positions: np.ndarray | int) -> np.ndarray:
        """Indices, int64 in the shape of ``positions``, which must lie in range(n)."""
        values = np.asarray(positions, np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.n):
            raise IndexError(f"positions must lie in range({self.n})")
        result = self._encrypt(values.reshape(-1).astype(np.uint64))
        outside = np.flatnonzero(result >= self.n)
        while outside.size:
            result[outside] = self._encrypt(result[outside])
            outside = outside[result[outside] >= self.n]
        return result.astype(np.int64).reshape(values.shape)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


class ExampleRandom:
    """Random numbers of every example, by (epoch, number, part): the same on any machine and in any order of asking.

    Philox (Salmon et al. 2011) counts through a keyed permutation, so an example's numbers begin at a counter that is
    made of its indices; setting that counter takes 1 us, seeding a generator 13.

    Args:
      *key: whole numbers, 0 or more: purpose of the numbers, seed, ...
    """

    def __init__(self, *key: int):
        digest = hashlib.sha256(repr(checked_seed(key)).encode()).digest()
        self._key = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
        self._threads = threading.local()  # a generator is used by one thread at a time

    def at(self, epoch: int, number: int, part: int = 0) -> np.random.Generator:
        """The generator, valid until this thread's next call."""
        if not hasattr(self._threads, "generator"):
            self._threads.generator = np.random.Generator(np.random.Philox(key=self._key))
            self._threads.state = dict(self._threads.generator.bit_generator.state)
        state = self._threads.state
        state["state"]["counter"][:] = (0, part, number, epoch)
        state["buffer_pos"], state["has_uint32"], state["uinteger"] = 4, 0, 0
        self._threads.generator.bit_generator.state = state
        return self._threads.generator


def epoch_and_position(number: np.ndarray | int, per_epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, position in it) of the ``number``-th example of an endless run; int64, shaped like ``number``."""
    epoch, position = np.divmod(np.asarray(number, np.int64), per_epoch)
    return epoch, position


def checked_seed(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    """``seed`` as a tuple of non-negative integers. Raises ``UserError`` for anything else."""
    parts = seed if isinstance(seed, tuple) else (seed,)
    whole = all(isinstance(part, int | np.integer) and not isinstance(part, bool) and part >= 0 for part in parts)
    require(whole, "seed", repr(seed), "a whole number, 0 or more")
    return tuple(int(part) for part in parts)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every input bit reaches every output bit. Products wrap, as they should."""
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIER
    values = (values ^ (values >> np.uint64(27))) * _SECOND_MULTIPLIER
    return values ^ (values >> np.uint64(31))
