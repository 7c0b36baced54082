"""What an optimizer keeps for one parameter, told as dimensions of the parameter. Must not know any optimizer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Slot:
    """A float32 array kept for one parameter, starting at zero.

    ``dimensions`` lists the parameter's dimensions it has: all of them for a momentum, all but one for a row or column
    of a factored second moment. Shape and logical axes of the array are the parameter's at those dimensions.
    """

    dimensions: tuple[int, ...]
