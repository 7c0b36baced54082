"""Numbers are in range, in Python and as text alike, and the error says the range."""

import dataclasses
import math
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_like.core import ranges
from t5x_like.core.config import Config, from_json, override, to_json
from t5x_like.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Numbers(Config, where="numbers"):
    count: ranges.PositiveInt = 1
    rate: ranges.PositiveFloat = 1.0
    decay: ranges.BelowOne = 0.0
    maybe: ranges.Probability | None = None
    many: tuple[ranges.NonNegativeFloat, ...] = ()
    power: Annotated[float, ranges.Range(1, math.inf, "1 or more, or infinity")] = 1.0


OUTSIDE = [
    ("count", 0), ("count", -1), ("count", 2**31), ("count", 10**400), ("rate", 0.0), ("rate", 1e-46), ("rate", 1e39),
    ("rate", math.nan), ("rate", math.inf), ("decay", 1.0), ("decay", 0.999999999), ("decay", -1e-9),
    ("maybe", 1.5), ("maybe", math.nan), ("power", 0.5), ("power", math.nan), ("power", -math.inf),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), OUTSIDE)
def test_a_number_out_of_range_is_refused_in_python_and_as_text(field, value):
    for attempt in (lambda: Numbers(**{field: value}), lambda: override(Numbers(), [f"{field}={value}"])):
        with pytest.raises(UserError) as error:
            attempt()
        assert error.value.where.endswith(field)
        assert str(value) in error.value.got or repr(value) in error.value.got


def test_the_error_says_the_range():
    with pytest.raises(UserError, match="a whole number, 1 or more, at most 2147483647"):
        Numbers(count=0)
    with pytest.raises(UserError, match="a number, from 0 to 1"):
        Numbers(maybe=7.0)


def test_each_of_several_numbers_is_checked():
    assert Numbers(many=(1.0, 0.0)).many == (1.0, 0.0)
    with pytest.raises(UserError, match="0 or more"):
        Numbers(many=(1.0, -1.0))
    with pytest.raises(UserError, match="0 or more"):
        override(Numbers(), ["many=1,-1"])


def test_infinity_where_the_range_has_it():
    assert override(Numbers(), ["power=inf"]).power == Numbers(power=math.inf).power == math.inf


@given(st.integers(1, 2**31 - 1), st.floats(1e-37, 3e38), st.floats(0, 0.9999))
def test_numbers_in_range_come_back_from_json(count, rate, decay):
    numbers = Numbers(count=count, rate=rate, decay=decay)
    assert from_json(Numbers, to_json(numbers)) == numbers
    assert override(Numbers(), [f"count={count}", f"rate={rate!r}", f"decay={decay!r}"]) == numbers
