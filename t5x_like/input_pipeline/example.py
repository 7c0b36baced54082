"""What passes between objectives and batches: one example, and what the pipeline asks of an objective.

Lies in this folder, below the objectives, so that the pipeline need not import them. Imports no numpy at run time, so
that configs load fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from t5x_like.input_pipeline.config import DataConfig, Shape

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Example:
    """One training example, before it is laid out for a model; its ids are all data, id 0 too.

    Attributes:
      inputs: (inputs,) ids that are read: by an encoder, or as the visible prefix of a decoder that stands alone.
      targets: (targets,) ids that are predicted; for an encoder without decoder as many as ``inputs``.
      weights: (targets,) float32 weight of each target in the loss; None: all 1.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None


class Objective(Protocol):
    """What makes pieces of text into examples; a frozen dataclass in t5x_like/objectives.

    Attributes:
      shapes: the model shapes that it can train.
      joins_documents: whether a piece that crosses the border of two documents is one example (as in T5). Otherwise
        each document ends in EOS, and each document's share of the piece is an example of its own, in a segment of its
        own, so that attention never crosses the border.
      has_prefix: whether a decoder that stands alone sees ``Example.inputs`` in both directions.
      inputs_end_in_eos: whether an encoder's inputs end in EOS, so that a prompt must too.
      minimum_length: pieces with fewer tokens cannot be made into an example.
    """

    shapes: ClassVar[tuple[Shape, ...]]
    joins_documents: ClassVar[bool]
    has_prefix: ClassVar[bool]
    inputs_end_in_eos: ClassVar[bool]
    minimum_length: ClassVar[int]

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """Tokens per row: (encoder, decoder) for an encoder-decoder, else (tokens,)."""
        ...

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that fill one row: text is cut to this length."""
        ...

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """Tokens per side (as ``capacity``) that a piece needs at most; depends on nothing else, so packing can
        plan."""
        ...

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError`` where tokenizer, lengths and shape do not suit the objective."""
        ...

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The example that (length,) ``tokens`` make with the random numbers of ``rng``."""
        ...
