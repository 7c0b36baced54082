"""Where the time went: the account of a ledger made by hand equals the sum over its lines."""

from __future__ import annotations

import pytest
from hand_ledger import FIRST, SECOND, write

from t5x_like.report.account import BETWEEN, KEPT, LOST, account_of
from t5x_like.report.ledger import read_ledger


def test_goodput_of_a_ledger_made_by_hand(tmp_path):
    write(tmp_path)
    (tmp_path / "ledger" / "1-1.jsonl").write_text('{"time": 1, "event": "steps", "step": 9, "spent": {"step": 900}}\n')
    account = account_of(read_ledger(tmp_path))
    kept = 36 + 118 + 39.5 / 2 + 20  # 1-20; 21-80; half of 81-100; 91-100
    assert account.total == pytest.approx(653) and account.goodput == pytest.approx(kept / 653, rel=0.01)
    assert account.goodput == pytest.approx(0.29671, abs=1e-5)
    expected = {
        KEPT: kept, LOST: 76 + 39.5 / 2, "waiting for data": 1 + 3 + 4 + 2 + 0.5 + 1, "compiling": 39 + 34 + 30,
        "restoring": 5 + 4, "saving": 2 + 3 + 2, "evaluation": 10, "setup": 20 + 10 + 1 + 6, "everything else": 2,
        BETWEEN: (280 - 192) + (590 - 494),
    }  # fmt: skip
    assert account.seconds == pytest.approx(expected)
    assert account.lost_steps == 40 + 10
    assert [(each.first, each.last, each.ending) for each in account.attempts] == [
        (0, 60, ""), (20, 100, "failed: None"), (90, 100, "complete")]  # fmt: skip


def test_steps_that_two_later_attempts_went_back_behind_are_lost(tmp_path):
    """The last of three goes on from before the second: what the first made after that is lost too."""
    back = [(400, "start", 10, {}), (410, "steps", 20, {"step": 10.0})]
    write(tmp_path, (FIRST, SECOND[:4], back))
    account = account_of(read_ledger(tmp_path))
    assert account.seconds[KEPT] == pytest.approx(36 / 2 + 10)
    assert account.seconds[LOST] == pytest.approx(36 / 2 + 76 + 118)


@pytest.mark.parametrize("lines", [[], [(5, "fault", None, {})], [(5, "steps", 3, {"unknown": 2.0})]])
def test_little_is_enough(tmp_path, lines):
    write(tmp_path, (lines,))
    account = account_of(read_ledger(tmp_path))
    assert account.total == sum(sum(line[3].values()) for line in lines) and account.goodput == 0.0
