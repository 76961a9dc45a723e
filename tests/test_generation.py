"""Which rollouts make up a batch: dynamic sampling and hints, with recorded outcomes instead of a model."""

import types

import numpy as np
import pytest

from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.generation import Rows, Scaffold, blank, gather
from jaxrl_reason.metrics import PhaseTimer
from jaxrl_reason.rollout.responses import Response
from jaxrl_reason.types import Rollouts
from jaxrl_reason.verify import Verdict

P, G, S, T = 3, 2, 4, 5
RIGHT, WRONG = Verdict.correct, Verdict.wrong


def make_rows(problems, outcomes, mark=0):
    """Rows of problems whose rollouts have these outcomes; tokens tell (call, row) apart."""
    count = len(problems) * G
    tokens = np.arange(count * T, dtype=np.int32).reshape(count, T) + 1000 * mark
    rollouts = Rollouts(
        tokens,
        np.ones((count, T), bool),
        np.full((count, T), -1.0, np.float32),
        np.full(count, T, np.int32),
        np.zeros(count, bool),
    )
    verdicts = [RIGHT if o else WRONG for group in outcomes for o in group]
    return Rows(
        list(problems),
        np.full((count, S), mark, np.int32),
        np.ones((count, S), bool),
        rollouts,
        [Response(f"{mark}/{i}", "7", None, True, True) for i in range(count)],
        lambda: verdicts,
        [],
        np.full(count, -1, np.int8),
    )


class FakeGenerator:
    """Answers every call with the next recorded outcomes; remembers what it was asked."""

    def __init__(self, *recorded, too_long=()):
        self.recorded, self.calls, self.too_long = list(recorded), [], too_long

    def prompts(self, problems, keys):
        return types.SimpleNamespace(
            problems=list(problems), keys=np.asarray(keys), mask=np.ones((len(problems), S), bool)
        )

    def fits(self, problem):
        return problem.problem not in self.too_long

    def __call__(self, params, prompts, step, timer):
        self.calls.append(prompts)
        return make_rows(prompts.problems, self.recorded[len(self.calls) - 1], len(self.calls))


def problems(first=0, hints=()):
    return [Problem(f"p{i}", f"problem {i}", "7", hints=hints) for i in range(first, first + P)]


def drawing(**kwargs):
    """A stream of problems p0, p1, …"""
    state = {"next": 0}

    def draw():
        first = state["next"]
        state["next"] += P
        return problems(first, **kwargs), np.arange(first, first + P, dtype=np.uint32)

    return draw


ALL, NONE, MIXED = (1, 1), (0, 0), (1, 0)


def collected(generate, **settings):
    return gather(generate, drawing(), None, 1, PhaseTimer(), **settings)


def ids(rows):
    return [p.id for p in rows.problems]


def test_without_dynamic_sampling_a_batch_is_what_was_drawn():
    got = collected(FakeGenerator([ALL, NONE, MIXED]))
    assert ids(got.rows) == ["p0", "p1", "p2"]
    assert got.kept == [True] * 3
    assert got.costs == {"sampling/generated_prompts": 3, "sampling/kept_prompts": 3}
    assert got.num_tokens == P * G * T + P * S
    assert got.rows.pending is not None  # nothing has waited for the verdicts
    np.testing.assert_array_equal(got.rows.num_correct, [2, 0, 1])


def test_dynamic_sampling_draws_until_the_batch_is_full():
    generate = FakeGenerator([ALL, MIXED, NONE], [MIXED, NONE, ALL], [MIXED, MIXED, ALL])
    got = collected(generate, dynamic=True, max_resample=3)
    assert ids(got.rows) == ["p1", "p3", "p6"]  # p7 is mixed too, but the batch is full
    assert len(generate.calls) == 3
    assert got.costs == {"sampling/generated_prompts": 9, "sampling/kept_prompts": 3}
    assert got.kept == [False, True, False, True, False, False, True, False, False]
    assert ids(got.sampled) == [f"p{i}" for i in range(9)]
    np.testing.assert_array_equal(got.sampled.num_correct, [2, 1, 0, 1, 0, 2, 1, 1, 2])
    # the rollouts are those of their prompts: calls 1, 2, 3, groups 1, 0, 0
    expected = [*range(1, 4)]
    assert [int(x) for x in got.rows.prompt_tokens[::G, 0]] == expected
    np.testing.assert_array_equal(
        got.rows.rollouts.tokens[:, 0], [1010, 1015, 2000, 2005, 3000, 3005]
    )
    assert got.num_tokens == 3 * (P * G * T + P * S)


def test_dynamic_sampling_goes_on_with_what_there_is():
    nothing = [ALL, NONE, ALL]
    generate = FakeGenerator([ALL, MIXED, NONE], nothing, nothing)
    got = collected(generate, dynamic=True, max_resample=2)
    assert len(generate.calls) == 3
    assert got.costs == {"sampling/generated_prompts": 9, "sampling/kept_prompts": 1}
    assert len(got.rows.responses) == P * G  # the shape stays
    np.testing.assert_array_equal(got.rows.rollouts.mask.any(axis=1), [True] * 2 + [False] * 4)
    np.testing.assert_array_equal(got.rows.correct, [1, 0, 0, 0, 0, 0])
    # what was sampled is still there as it was
    assert got.sampled.rollouts.mask.all()


def test_blanks_are_dealt_to_all_mini_batches():
    generate = FakeGenerator([MIXED, MIXED, NONE, NONE])
    draw = lambda: ([*problems(), Problem("p3", "problem 3", "7")], np.arange(4))  # noqa: E731
    got = gather(
        generate, draw, None, 1, PhaseTimer(), dynamic=True, max_resample=0, num_mini_batches=2
    )
    filled = got.rows.rollouts.mask.any(axis=1)
    np.testing.assert_array_equal(filled, [True, True, False, False] * 2)
    assert [ids(got.rows)[i] for i in (0, 2)] == ["p0", "p1"]


def test_not_one_mixed_group_leaves_a_blank_batch():
    got = collected(FakeGenerator([ALL, NONE, ALL], [NONE] * 3), dynamic=True, max_resample=1)
    assert got.costs["sampling/kept_prompts"] == 0
    assert not got.rows.rollouts.mask.any()
    assert got.rows.rollouts.tokens.shape == (P * G, T)


def test_blank_rows_have_no_tokens_and_are_not_right():
    rows = blank(make_rows(problems(), [ALL, ALL, ALL]))
    assert not rows.rollouts.mask.any() and not rows.rollouts.lengths.any()
    assert not rows.correct.any()


def scaffolded(generate, hints=("weak", "strong"), max_hints=2):
    draw = drawing(hints=hints)
    scaffold = Scaffold("{problem}|{hint}", max_hints)
    return gather(generate, draw, None, 1, PhaseTimer(), scaffold=scaffold)


def test_the_weakest_hint_that_succeeds_replaces_the_last_rollout():
    # p0 is solved; p1 and p2 are not. The weak hint helps p2 (second rollout), the strong one p1
    generate = FakeGenerator([MIXED, NONE, NONE], [NONE, (0, 1), NONE], [(1, 1), NONE, NONE])
    got = scaffolded(generate)
    asked = [[p.problem for p in call.problems] for call in generate.calls[1:]]
    assert asked[0][:2] == ["problem 1|weak", "problem 2|weak"]
    assert asked[1][:1] == ["problem 1|strong"]
    assert all(len(call) == P for call in asked)  # one shape
    np.testing.assert_array_equal(got.rows.hint, [-1, -1, -1, 1, -1, 0])
    np.testing.assert_array_equal(got.rows.num_correct, [1, 1, 1])
    # p1's last rollout is the first of the third call, p2's the second of the second call's second
    np.testing.assert_array_equal(
        got.rows.rollouts.tokens[3], make_rows(problems(), [ALL] * 3, 3).rollouts.tokens[0]
    )
    np.testing.assert_array_equal(
        got.rows.rollouts.tokens[5], make_rows(problems(), [ALL] * 3, 2).rollouts.tokens[3]
    )
    assert [int(x) for x in got.rows.prompt_tokens[:, 0]] == [1, 1, 1, 3, 1, 2]
    assert got.costs["sampling/hinted_prompts"] == 2
    assert got.costs["sampling/hinted_generated_prompts"] == 3  # p1 twice
    assert got.costs["sampling/hinted_rollouts"] == 2
    assert got.num_tokens == (P + 3) * (G * T + S)
    # accuracy is counted without hints, from rollouts that were left as they were
    np.testing.assert_array_equal(got.sampled.num_correct, [1, 0, 0])
    assert got.sampled.rollouts.tokens[3, 0] == 1015
    assert len({tuple(call.keys.tolist()) for call in generate.calls}) == 3


@pytest.mark.parametrize("hints", [(), ("useless",)])
def test_groups_that_no_hint_helps_stay(hints):
    got = scaffolded(FakeGenerator([NONE, ALL, NONE], [NONE] * 3), hints)
    np.testing.assert_array_equal(got.rows.hint, [-1] * 6)
    assert got.costs["sampling/hinted_prompts"] == (2 if hints else 0)
    assert got.costs["sampling/hinted_rollouts"] == 0
    np.testing.assert_array_equal(got.rows.num_correct, [0, 2, 0])


def test_a_hinted_prompt_that_is_too_long_is_left_out():
    generate = FakeGenerator([NONE, ALL, ALL], [(1, 0), NONE, NONE], too_long=("problem 0|weak",))
    got = scaffolded(generate)
    assert [p.problem for p in generate.calls[1].problems][:1] == ["problem 0|strong"]
    np.testing.assert_array_equal(got.rows.hint, [-1, 1, -1, -1, -1, -1])


def test_hints_and_dynamic_sampling_together():
    generate = FakeGenerator([NONE, ALL, MIXED], [(1, 0), NONE, NONE], [MIXED, ALL, ALL])
    scaffold = Scaffold("{hint}", 1)
    got = gather(
        generate, drawing(hints=("h",)), None, 1, PhaseTimer(), dynamic=True, max_resample=1,
        scaffold=scaffold,
    )  # fmt: skip
    assert ids(got.rows) == ["p0", "p2", "p3"]  # p0 is mixed thanks to its hint
    assert got.costs["sampling/generated_prompts"] == 6
