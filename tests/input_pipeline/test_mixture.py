"""Which source a row comes from: exact counts at any step, rates kept, limits kept."""


import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import t5x_like.input_pipeline.batches.mixture as mixture
from t5x_like.core.config import flatten, from_json, override, to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.mixture import Interleaving, limits, shares
from t5x_like.input_pipeline.config import (
    Bytes,
    Corpus,
    DataConfig,
    Mixture,
    Part,
    Proportional,
    RateSchedule,
    SentencePiece,
    TextFiles,
    corpora,
)


def corpus(name: str) -> Corpus:
    return Corpus(name, TextFiles(("nowhere",)), SentencePiece(), "none", "made up")


A, B, C, D = map(corpus, "abcd")


def at(node, step=0, **tokens):
    return shares(node, tokens)[0](np.asarray([step]))[0].tolist()


def test_rates_of_nested_mixtures_multiply_and_add_up_to_one():
    inner = Mixture("inner", (Part(B, 1.0), Part(C, 3.0)), Bytes())
    node = Mixture("outer", (Part(A, 2.0), Part(inner, 2.0)), Bytes())
    assert at(node) == pytest.approx([0.5, 0.125, 0.375])
    assert [each.name for each in corpora(node)] == ["a", "b", "c"]
    assert all(each.tokenizer == Bytes() for each in corpora(node)), "one vocabulary for all"
    assert shares(node, {})[1], "constant"


def test_proportional_rates_follow_size_maximum_and_temperature():
    def node(**options):
        return Mixture("m", (Part(A, Proportional(**options)), Part(B, Proportional(**options))), Bytes())

    assert at(node(), a=900, b=100) == pytest.approx([0.9, 0.1])
    assert at(node(maximum=300), a=900, b=100) == pytest.approx([0.75, 0.25])
    assert at(node(temperature=2.0), a=900, b=100) == pytest.approx([0.75, 0.25])
    nested = Mixture("o", (Part(C, Proportional()), Part(node(), Proportional())), Bytes())
    assert at(nested, a=900, b=100, c=1000) == pytest.approx([0.5, 0.45, 0.05])


def test_rates_that_change_with_the_step():
    node = Mixture("m", (Part(A, 1.0), Part(B, RateSchedule((10, 20), (0.0, 3.0)))), Bytes())
    assert [at(node, step)[1] for step in (0, 10, 15, 20, 99)] == pytest.approx([0, 0, 0.6, 0.75, 0.75])
    assert not shares(node, {})[1]
    fading = Mixture("m", (Part(A, RateSchedule((0, 9), (1.0, 0.0))),), Bytes())
    plan = Interleaving(shares(fading, {})[0], False, [None], ["a"], 4, 0)
    assert plan.drawn(9).tolist() == [36]
    with pytest.raises(UserError, match="a: used up, or at a rate of 0, before the end of step 9"):
        plan.rows(9)
    within = Mixture("o", (Part(fading, RateSchedule((0, 9), (1.0, 0.0))), Part(B)), Bytes())
    assert at(within, 9) == [0.0, 1.0] and at(within, 0) == [0.5, 0.5]


def test_a_part_of_rate_0_is_as_if_it_were_not_there():
    node = Mixture("m", (Part(A), Part(B, 0.0), Part(C)), Bytes())
    assert [each.name for each in corpora(node)] == ["a", "c"] and at(node) == [0.5, 0.5]
    assert len(limits(node)) == 2


_rates = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6)


def constant(rates):
    array = np.asarray(rates) / sum(rates)
    return lambda steps: np.tile(array, (len(steps), 1))


@given(_rates, st.integers(1, 40), st.integers(0, 5), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_every_draw_once_in_order_and_counts_near_the_rates(rates, batch_size, seed, is_constant, draw):
    limit = draw.draw(st.lists(st.one_of(st.none(), st.integers(0, 150)), min_size=len(rates), max_size=len(rates)))
    limit[0] = None  # one that never ends
    names = [str(i) for i in range(len(rates))]
    plan = Interleaving(constant(rates), is_constant, limit, names, batch_size, seed)
    drawn = np.zeros(len(rates), np.int64)
    for step in range(30):
        assert plan.drawn(step).tolist() == drawn.tolist()
        sources, draws = plan.rows(step)
        for source, number in zip(sources.tolist(), draws.tolist(), strict=True):
            assert number == drawn[source], "draws of a source are counted without gaps"
            drawn[source] += 1
    assert drawn.sum() == 30 * batch_size
    assert all(most is None or count <= most for count, most in zip(drawn.tolist(), limit, strict=True))
    again = Interleaving(constant(rates), is_constant, limit, names, batch_size, seed)
    assert all(np.array_equal(x, y) for x, y in zip(again.rows(29), plan.rows(29), strict=True)), "seeking is reading"


def test_rates_are_kept_over_a_long_run_without_a_period():
    plan = Interleaving(constant([0.7, 0.2, 0.0999, 0.0001]), True, [None] * 4, list("abcd"), 16, 0)
    drawn = plan.drawn(100_000)
    assert np.abs(drawn - 1_600_000 * np.asarray([0.7, 0.2, 0.0999, 0.0001])).max() < 60
    patterns = {plan.rows(step)[0].tobytes() for step in range(2000)}
    assert len(patterns) > 1500
    shares_of_steps = np.asarray([np.mean(plan.rows(step)[0] == 0) for step in range(500)])
    assert shares_of_steps.std() < 0.5 * np.sqrt(0.7 * 0.3 / 16), "rows of a source are spread, not drawn"


def test_a_schedule_is_followed_step_by_step():
    rates, _ = shares(Mixture("m", (Part(A, 1.0), Part(B, RateSchedule((99, 100), (0.0, 1.0)))), Bytes()), {})
    plan = Interleaving(rates, False, [None, None], ["a", "b"], 8, 0)
    assert plan.drawn(100).tolist() == [800, 0]
    assert plan.drawn(300).tolist() == [1600, 800]


def test_what_is_used_up_gives_its_share_to_the_others():
    plan = Interleaving(constant([0.5, 0.5]), True, [100, None], ["a", "b"], 10, 0)
    assert plan.drawn(10_000).tolist() == [100, 99_900]
    # A source comes to its end at its own rate: 300 rows at 0.9 of 16 a step are gone after 21 steps, not before 20.
    soon = Interleaving(constant([0.9, 0.1]), True, [300, None], ["a", "b"], 16, 0)
    assert soon.drawn(10)[0] == pytest.approx(144, abs=2) and soon.drawn(20)[0] < 300 == soon.drawn(22)[0]
    ends = Interleaving(constant([0.5, 0.5]), True, [100, 300], ["a", "b"], 10, 0)
    assert ends.drawn(40).tolist() == [100, 300]
    with pytest.raises(UserError, match="a, b: used up, or at a rate of 0, before the end of step"):
        ends.drawn(5000)


def test_the_end_is_found_also_far_behind_the_first_chunk_of_blocks(monkeypatch):
    monkeypatch.setattr(mixture, "_BLOCKS_PER_CHUNK", 4)
    monkeypatch.setattr(mixture, "_ROWS_PER_BLOCK", 4)
    plan = Interleaving(constant([0.5, 0.5]), True, [90, 70], ["a", "b"], 4, 0)
    assert plan.drawn(40).tolist() == [90, 70]
    with pytest.raises(UserError, match="used up"):
        plan.rows(40)
    with pytest.raises(UserError, match="used up"):
        plan.drawn(4000)


def test_a_mixture_goes_to_json_and_back_and_its_parts_can_be_set():
    parts = (Part(A, RateSchedule((0, 5), (1.0, 2.0))), Part(Mixture("in", (Part(B, Proportional(10)),), Bytes()), 2.0))
    data = DataConfig(Mixture("m", parts, Bytes()), 32, skip=("5:7", "6:9", "20:30"))
    assert from_json(DataConfig, to_json(data)) == data
    assert flatten(data)["corpus.parts.1.corpus.parts.0.rate.maximum"] == 10
    changed = override(data, ["corpus.parts.1.rate=3", "corpus.parts.1.corpus.parts.0.corpus.heldout=0.5"])
    assert changed.corpus.parts[1].rate == 3.0 and corpora(changed.corpus)[1].heldout == 0.5
    with pytest.raises(UserError, match="no such field"):
        override(data, ["corpus.parts.7.rate=3"])
    assert data.skipped() == ((5, 9), (20, 30))
    assert limits(data.corpus) == [(0.0, 0), (0.0, 0)]


def test_mistakes_in_mixtures():
    with pytest.raises(UserError, match="two corpora of the name 'a'"):
        Mixture("m", (Part(A), Part(Mixture("n", (Part(A),), Bytes()))), Bytes())
    with pytest.raises(UserError, match="0 for every part"):
        Mixture("m", (Part(A, 0.0),), Bytes())
    with pytest.raises(UserError, match="parts: none"):
        Mixture("m", (), Bytes())
    with pytest.raises(UserError, match="data.skip: '5-7'"):
        DataConfig(A, 32, skip=("5-7",))
    with pytest.raises(UserError, match="of mixture 'n'"):
        Part(Mixture("n", (Part(A),), Bytes()), epochs=2.0)
    with pytest.raises(UserError, match="ascending"):
        RateSchedule((5, 5), (1.0, 1.0))
    with pytest.raises(UserError, match="temperature"):
        Proportional(temperature=0.0)
