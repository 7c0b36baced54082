"""UL2's mixture of denoisers: short spans, long or many spans, and prefix language modelling, told apart by a mode.

Makes no examples itself: each row is of one of its streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import NonNegativeFloat
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Objective
from t5x_like.objectives.prefix_lm import PrefixLM
from t5x_like.objectives.span_corruption import SpanCorruption

if TYPE_CHECKING:
    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

Denoiser = SpanCorruption | PrefixLM


def _spans(mode: str, *sizes: tuple[float, float]) -> tuple[Denoiser, ...]:
    return tuple(SpanCorruption(density, mean, mode) for mean, density in sizes)


@dataclass(frozen=True)
class UL2(Objective):
    """The mixture of denoisers of UL2 (Tay et al. 2023, table 1): R, spans as T5's; S, a prefix LM; X, long spans
    or a high noise density. Each begins its inputs with the token of its mode.

    A prompt begins with the mode token too: [S2S] to continue a text, [NLU] and [NLG] to fill sentinels. Half noise in
    spans of 3 takes many sentinels: 128 of them for 512 tokens of an encoder.

    Attributes:
      denoisers: members of the mixture.
      rates: rate of each denoiser; empty: all alike.
    """

    denoisers: tuple[Denoiser, ...] = (
        *_spans("[NLU]", (3.0, 0.15), (8.0, 0.15)),
        PrefixLM("[S2S]"),
        *_spans("[NLG]", (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5)),
    )
    rates: tuple[NonNegativeFloat, ...] = ()

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder", "decoder-only")
    has_prefix: ClassVar[bool] = True
    minimum_length: ClassVar[int] = 2

    def __post_init__(self):
        require(bool(self.denoisers), "objective.denoisers", "none", "one or more")
        if len(self.rates) not in (0, len(self.denoisers)):
            got = f"{len(self.rates)} for {len(self.denoisers)} denoisers"
            raise UserError("objective.rates", got, "one for each, or none")
        require(not self.rates or any(self.rates), "objective.rates", self.rates, "not all of them 0")

    def streams(self) -> tuple[tuple[float, Objective], ...]:
        """(rate, denoiser) of all of them."""
        return tuple(zip(self.rates or (1.0,) * len(self.denoisers), self.denoisers, strict=True))

    def prompt(self, tokens: list[int], tokenizer: Tokenizer) -> list[int]:
        """The prompt of the first denoiser whose mode token begins ``tokens``; unchanged if there is none."""
        for each in self.denoisers:
            if each.mode and tokens[:1] == [tokenizer.find(each.mode)]:
                return each.prompt(tokens, tokenizer)
        return tokens

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """The most that any of the denoisers needs, on each side."""
        return tuple(map(max, zip(*(each.capacity(data, shape) for each in self.denoisers), strict=True)))

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """The longest piece of any of the denoisers."""
        return max(each.piece_length(data, shape) for each in self.denoisers)

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """The most that any of the denoisers makes of a piece, on each side."""
        return tuple(map(max, zip(*(each.lengths(piece_length, shape) for each in self.denoisers), strict=True)))

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError`` where tokenizer, lengths and shape do not suit one of the denoisers."""
        for number, each in enumerate(self.denoisers):
            try:
                each.check(tokenizer, data, shape)
            except UserError as error:
                where = error.where.replace("objective.", f"objective.denoisers.{number}.")
                raise UserError(where, error.got, error.allowed, error.suggestion) from None
