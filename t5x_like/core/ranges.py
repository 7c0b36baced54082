"""Ranges of numbers, as type hints: ``steps: PositiveInt``. ``core.structure`` checks them wherever a value is given.

The limits are those of what computes with the number: counters on the device are int32, other numbers float32, in
which a number under 1.2e-38 is 0 and one nearer to 1 than 6e-8 is 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

INT32_MAX = 2**31 - 1
FLOAT32_MAX = 3.4028234e38
FLOAT32_TINY = 1.1754944e-38
"""The least positive float32 that is not flushed to 0."""
BELOW_1 = 1 - 2.0**-24
"""The float32 before 1."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included; an infinite end allows infinity itself.

    ``words`` say it in an error, behind "a whole number" or "a number".
    """

    low: float
    high: float
    words: str = ""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return self.words or f"from {self.low} to {self.high}"

    @property
    def allows_infinity(self) -> bool:
        return math.isinf(self.high) or math.isinf(self.low)


PositiveInt = Annotated[int, Range(1, INT32_MAX, f"1 or more, at most {INT32_MAX}")]
NonNegativeInt = Annotated[int, Range(0, INT32_MAX, f"0 or more, at most {INT32_MAX}")]
Size = Annotated[int, Range(0, 2**53, "0 or more, at most 2^53")]
"""The hint of a number of rows, bytes or the like, which only the host counts."""
Seed = Annotated[int, Range(0, 2**32 - 1, "0 or more, at most 2^32 - 1")]
FiniteFloat = Annotated[float, Range(-FLOAT32_MAX, FLOAT32_MAX, "at most 3.4e38 either way")]
PositiveFloat = Annotated[float, Range(FLOAT32_TINY, FLOAT32_MAX, "above 0 (1.2e-38 to 3.4e38)")]
NonNegativeFloat = Annotated[float, Range(0, FLOAT32_MAX, "0 or more, at most 3.4e38")]
Probability = Annotated[float, Range(0, 1, "from 0 to 1")]
BelowOne = Annotated[float, Range(0, BELOW_1, "from 0 up to but not 1")]
