"""Examples to model inputs: rows of tokens, segments, positions, targets and weights.

Knows the three shapes of model by what they are fed; must not know objectives or models. All arrays are int32 of shape
(rows, length) but ``weights``, which is float32:

- encoder-decoder: encoder_tokens, encoder_segments, encoder_positions, decoder_tokens, decoder_segments,
  decoder_positions, targets, weights
- decoder-only: decoder_tokens, decoder_segments, decoder_positions, targets, weights; with a prefix also decoder_prefix
- encoder-only: encoder_tokens, encoder_segments, encoder_positions, targets, weights; in a given order also
  encoder_order

Segments count a row's examples from 1; segment 0, and nothing else, is padding: id 0 inside a text is data. Positions
start at 0 in each segment, unless an example says its own. ``decoder_tokens`` are the targets shifted right by one
inside each segment, after the padding id as start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5x_like.core.batch import text_arrays
from t5x_like.input_pipeline.config import Shape
from t5x_like.objectives.base import Example

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class TokenCount:
    """What a batch holds.

    Attributes:
      tokens: number of slots that are not padding, on both sides together.
      loss_tokens: number of targets with a weight above 0.
      slots: number of all slots on both sides.
    """

    tokens: int
    loss_tokens: int
    slots: int


def feature_names(shape: Shape, extras: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the arrays of a batch for a model of ``shape``, in the order of the module's docstring.

    Args:
      shape: shape of the model.
      extras: names of further arrays, as of ``Objective.extras``.
    """
    return tuple(text_arrays("encoder" in shape, "decoder" in shape, extras))


def make_batch(
    rows: Sequence[Sequence[Example]], shape: Shape, capacity: tuple[int, ...], pad_id: int = 0,
    extras: tuple[str, ...] = (),
) -> Batch:  # fmt: skip
    """The batch that ``rows`` make; a row without examples is all padding.

    Args:
      rows: the examples of each row; they must fit.
      shape: shape of the model.
      capacity: (encoder length, decoder length), or (length,).
      pad_id: fills what is left, and starts each decoder segment.
      extras: further arrays, as ``Objective.extras`` says: ``decoder_prefix``, ``encoder_order`` or none.
    """
    batch: Batch = {}
    for name, array in text_arrays("encoder" in shape, "decoder" in shape, extras).items():
        length = capacity[0 if name.startswith("encoder") else -1]
        fill = pad_id if name in ("encoder_tokens", "decoder_tokens", "targets") else 0
        batch[name] = np.full((len(rows), length), fill, array.dtype)
    if examples := [example for row in rows for example in row]:
        # All examples of a batch are written together: a short one costs little more than its tokens.
        counts = np.asarray([len(row) for row in rows])
        write = {"encoder-decoder": _write_pair, "decoder-only": _write_decoder, "encoder-only": _write_encoder}[shape]
        write(batch, counts, examples, pad_id)
    return batch


class _Side:
    """The slots of one side that hold tokens, in order. Writes their segments and positions.

    Args:
      batch: the arrays to write to.
      side: ``encoder`` or ``decoder``.
      counts: number of examples of each row.
      texts: of each example the tokens, or anything of their number.

    Attributes:
      positions: (tokens,) counted from 0 in each example.
      lengths: (examples,).

    Raises:
      ValueError: the texts of a row are longer than the row.
    """

    def __init__(self, batch: Batch, side: str, counts: np.ndarray, texts: Sequence[np.ndarray]):
        self.batch = batch
        self.lengths = lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        rows = np.repeat(np.arange(len(counts)), counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)  # the first example of each one's row
        ends = np.cumsum(lengths)
        begins = ends - lengths
        width = batch[f"{side}_tokens"].shape[1]
        starts = begins - begins[firsts]
        if (starts + lengths > width).any():
            row = int(rows[np.argmax(starts + lengths)])
            raise ValueError(f"row {row} of the {side} has examples of more than {width} tokens")
        counted = np.arange(ends[-1])
        self._slots = counted + np.repeat(rows * width + starts - begins, lengths)
        self._begins = begins[lengths > 0]
        self.positions = counted - np.repeat(begins, lengths)
        self.write(f"{side}_segments", np.repeat(np.arange(len(rows)) - firsts + 1, lengths))
        self.write(f"{side}_positions", self.positions)

    def write(self, name: str, values: np.ndarray | Sequence[np.ndarray] | float) -> None:
        """Puts ``values``, those of all examples end to end, into the array ``name``."""
        if isinstance(values, list):
            values = np.concatenate(values)
        self.batch[name].reshape(-1)[self._slots] = values

    def write_targets(self, texts: list[np.ndarray], pad_id: int) -> None:
        """Targets, and the decoder's inputs: the same after one start token each."""
        targets = np.concatenate(texts)
        shifted = np.empty_like(targets)
        shifted[1:] = targets[:-1]
        shifted[self._begins] = pad_id
        self.write("targets", targets)
        self.write("decoder_tokens", shifted)


def _weights(examples: Sequence[Example]) -> np.ndarray | float:
    if all(example.weights is None for example in examples):
        return 1.0
    given = [np.ones(len(e.targets), np.float32) if e.weights is None else e.weights for e in examples]
    return np.concatenate(given)


def _write_pair(batch: Batch, counts: np.ndarray, examples: Sequence[Example], pad_id: int) -> None:
    inputs, targets = [example.inputs for example in examples], [example.targets for example in examples]
    _Side(batch, "encoder", counts, inputs).write("encoder_tokens", inputs)
    decoder = _Side(batch, "decoder", counts, targets)
    decoder.write_targets(targets, pad_id)
    decoder.write("weights", _weights(examples))


def _write_decoder(batch: Batch, counts: np.ndarray, examples: Sequence[Example], pad_id: int) -> None:
    """One text of inputs and targets; loss on the targets only.

    The input at place j is the token before it, so the prefix of p tokens is read at places 1 to p, after the start
    token at 0. Places 0 to p are visible to each other: place p predicts the first target and does not hold it.
    """
    prefixes = np.fromiter((len(example.inputs) for example in examples), np.int64, len(examples))
    texts = [np.concatenate([e.inputs, e.targets]) if len(e.inputs) else e.targets for e in examples]
    decoder = _Side(batch, "decoder", counts, texts)
    decoder.write_targets(texts, pad_id)
    if not prefixes.any():
        decoder.write("weights", _weights(examples))
        return
    prefix = np.repeat(prefixes, decoder.lengths)
    weights = np.zeros(len(prefix), np.float32)
    weights[decoder.positions >= prefix] = _weights(examples)
    decoder.write("weights", weights)
    if "decoder_prefix" in decoder.batch:
        decoder.write("decoder_prefix", (decoder.positions <= prefix) & (prefix > 0))


def _write_encoder(batch: Batch, counts: np.ndarray, examples: Sequence[Example], pad_id: int) -> None:
    inputs = [example.inputs for example in examples]
    encoder = _Side(batch, "encoder", counts, inputs)
    encoder.write("encoder_tokens", inputs)
    encoder.write("targets", [example.targets for example in examples])
    encoder.write("weights", _weights(examples))
    if any(example.positions is not None for example in examples):
        counted = (np.arange(len(e.inputs)) if e.positions is None else e.positions for e in examples)
        encoder.write("encoder_positions", list(counted))
    if "encoder_order" in encoder.batch:
        encoder.write("encoder_order", [np.zeros(len(e.inputs)) if e.order is None else e.order for e in examples])


def tokens_in(batch: Batch) -> TokenCount:
    """Counts the tokens, loss tokens and slots of ``batch``."""
    segments = [array for name, array in batch.items() if name.endswith("_segments")]
    tokens = sum(int(np.count_nonzero(array)) for array in segments)
    return TokenCount(tokens, int(np.count_nonzero(batch["weights"])), sum(array.size for array in segments))
