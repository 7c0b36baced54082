"""Examples to model inputs: rows of tokens, segments, positions, targets and weights.

Knows the three shapes of model by what they are fed; must not know objectives or models. All arrays are int32 of shape
(rows, length) but ``weights``, which is float32:

- encoder-decoder: encoder_tokens, encoder_segments, encoder_positions, decoder_tokens, decoder_segments,
  decoder_positions, targets, weights
- decoder-only: decoder_tokens, decoder_segments, decoder_positions, targets, weights; with a prefix also decoder_prefix
- encoder-only: encoder_tokens, encoder_segments, encoder_positions, targets, weights

Segments count a row's examples from 1; segment 0, and nothing else, is padding: id 0 inside a text is data. Positions
start at 0 in each segment. ``decoder_tokens`` are the targets shifted right by one inside each segment, after the
padding id as start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t5x_like.input_pipeline.config import Shape
from t5x_like.input_pipeline.example import Example
from t5x_like.input_pipeline.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class TokenCount:
    """What a batch holds.

    Attributes:
      tokens: slots that are not padding, on the encoder's and the decoder's side together.
      loss_tokens: targets with a weight above 0.
      slots: all slots on both sides.
    """

    tokens: int
    loss_tokens: int
    slots: int


def feature_names(shape: Shape, has_prefix: bool = False) -> tuple[str, ...]:
    """Names of the arrays of a batch for a model of ``shape``, in the order of the module's docstring."""
    sides = {"encoder-decoder": ("encoder", "decoder"), "decoder-only": ("decoder",), "encoder-only": ("encoder",)}
    names = [f"{side}_{kind}" for side in sides[shape] for kind in ("tokens", "segments", "positions")]
    prefix = ("decoder_prefix",) if shape == "decoder-only" and has_prefix else ()
    return (*names, "targets", "weights", *prefix)


def make_batch(
    rows: Sequence[Sequence[Example]],
    shape: Shape,
    capacity: tuple[int, ...],
    pad_id: int = 0,
    has_prefix: bool = False,
) -> Batch:
    """The batch that ``rows`` make; a row without examples is all padding.

    Args:
      rows: the examples of each row; they must fit.
      shape: of the model.
      capacity: (encoder length, decoder length), or (length,).
      pad_id: fills what is left, and starts each decoder segment.
      has_prefix: whether a decoder-only batch gets ``decoder_prefix``.
    """
    lengths = {"encoder": capacity[0], "decoder": capacity[-1]}
    batch: Batch = {}
    for name in feature_names(shape, has_prefix):
        length = lengths["encoder" if name.startswith("encoder") or shape == "encoder-only" else "decoder"]
        fill = pad_id if name in ("encoder_tokens", "decoder_tokens", "targets") else 0
        batch[name] = np.full((len(rows), length), fill, np.float32 if name == "weights" else np.int32)
    write = {"encoder-decoder": _write_pair, "decoder-only": _write_decoder, "encoder-only": _write_encoder}[shape]
    for row, examples in enumerate(rows):
        views = {name: array[row] for name, array in batch.items()}
        used = (0, 0)
        for segment, example in enumerate(examples, 1):
            used = write(views, example, segment, used, pad_id)
    return batch


_Used = tuple[int, int]


def _write_pair(row: Batch, example: Example, segment: int, used: _Used, pad_id: int) -> _Used:
    encoder_end = _write_side(row, "encoder", used[0], example.inputs, segment)
    decoder_end = _write_targets(row, used[1], example.targets, segment, pad_id)
    row["weights"][used[1] : decoder_end] = 1.0 if example.weights is None else example.weights
    return encoder_end, decoder_end


def _write_decoder(row: Batch, example: Example, segment: int, used: _Used, pad_id: int) -> _Used:
    """One text of inputs and targets; loss on the targets only.

    The input at place j is the token before it, so the prefix of p tokens is read at places 1 to p, after the start
    token at 0. Places 0 to p are visible to each other: place p predicts the first target and does not hold it.
    """
    start, prefix = used[0], len(example.inputs)
    text = np.concatenate([example.inputs, example.targets]) if prefix else example.targets
    end = _write_targets(row, start, text, segment, pad_id)
    row["weights"][start + prefix : end] = 1.0 if example.weights is None else example.weights
    if "decoder_prefix" in row and prefix:
        row["decoder_prefix"][start : min(start + prefix + 1, end)] = 1
    return end, end


def _write_encoder(row: Batch, example: Example, segment: int, used: _Used, pad_id: int) -> _Used:
    end = _write_side(row, "encoder", used[0], example.inputs, segment)
    row["targets"][used[0] : end] = example.targets
    row["weights"][used[0] : end] = 1.0 if example.weights is None else example.weights
    return end, end


def _write_side(row: Batch, side: str, start: int, tokens: np.ndarray, segment: int) -> int:
    end = start + len(tokens)
    row[f"{side}_tokens"][start:end] = tokens
    row[f"{side}_segments"][start:end] = segment
    row[f"{side}_positions"][start:end] = np.arange(len(tokens))
    return end


def _write_targets(row: Batch, start: int, targets: np.ndarray, segment: int, pad_id: int) -> int:
    end = _write_side(row, "decoder", start, targets, segment)
    row["targets"][start:end] = targets
    if end > start:
        row["decoder_tokens"][start] = pad_id
        row["decoder_tokens"][start + 1 : end] = targets[:-1]
    return end


def tokens_in(batch: Batch) -> TokenCount:
    """Counts the tokens, loss tokens and slots of ``batch``."""
    segments = [array for name, array in batch.items() if name.endswith("_segments")]
    return TokenCount(
        tokens=sum(int(np.count_nonzero(array)) for array in segments),
        loss_tokens=int(np.count_nonzero(batch["weights"])),
        slots=sum(array.size for array in segments),
    )


def describe(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    """One row of ``batch`` as text for people: how full it is, and for each segment what is read and predicted."""
    if not 0 <= row < len(batch["targets"]):
        raise IndexError(f"row {row} of a batch of {len(batch['targets'])}")
    one = {name: array[row] for name, array in batch.items()}
    sides = [name for name in one if name.endswith("_segments")]
    filled = ", ".join(
        f"{name.removesuffix('_segments')} {np.count_nonzero(one[name])} of {one[name].size} slots" for name in sides
    )
    lines = [f"row {row}: {filled}, loss on {np.count_nonzero(one['weights'])} targets"]
    for segment in range(1, max(int(one[name].max()) for name in sides) + 1):
        lines += [f"segment {segment}", *_describe_segment(one, segment, tokenizer)]
    return "\n".join(lines)


def _describe_segment(row: Batch, segment: int, tokenizer: Tokenizer) -> list[str]:
    lines = []
    if "encoder_tokens" in row:
        inputs = row["encoder_tokens"][row["encoder_segments"] == segment]
        lines.append(f"  inputs:  {tokenizer.decode(inputs.tolist())!r}")
    mine = row["decoder_segments" if "decoder_segments" in row else "encoder_segments"] == segment
    targets, weights = row["targets"][mine], row["weights"][mine]
    if "decoder_prefix" in row:
        prefix = max(0, int(np.count_nonzero(row["decoder_prefix"][mine])) - 1)
        prefix = len(targets) if not weights.any() else prefix
        lines.append(f"  prefix:  {tokenizer.decode(targets[:prefix].tolist())!r}")
        targets, weights = targets[prefix:], weights[prefix:]
    if weights.all():
        lines.append(f"  targets: {tokenizer.decode(targets.tolist())!r}")
    else:
        shown = [tokenizer.decode([target]) for target in targets[weights > 0].tolist()]
        lines.append(f"  targets: {len(shown)} of {len(targets)} have weight: {' | '.join(map(repr, shown))}")
    return lines
