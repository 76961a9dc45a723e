from itertools import combinations
from math import comb

import numpy as np
import pytest

from jaxrl_reason.evaluation import (
    Decoding,
    answer_classes,
    bootstrap_interval,
    describe,
    maj_at_k,
    majority_class,
    pass_at_k,
    summarise,
    write,
)
from jaxrl_reason.verify import Verdict
from jaxrl_reason.workdir import read_json


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 0.5),  # 1 − C(3,2)/C(4,2) = 1 − 3/6
        (4, 2, 2, 5 / 6),  # 1 − C(2,2)/6
        (4, 3, 2, 1.0),  # C(1,2) = 0
        (5, 0, 5, 0.0),
        (5, 1, 5, 1.0),
        (8, 3, 1, 3 / 8),
    ],
)
def test_pass_at_k(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one():
    for n in (1, 5, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                share = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_of_many_samples():
    exact = 1 - comb(990, 128) / comb(1000, 128)
    assert pass_at_k(1000, 10, 128) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "named"),
    [(4, 1, 5, "k: 5"), (4, 1, 0, "k: 0"), (4, 5, 1, "c: 5"), (4, -1, 1, "c: -1")],
)
def test_pass_at_k_refuses(n, c, k, named):
    with pytest.raises(ValueError, match=named):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([0, 1, 1], 1),
        ([1, 0, 0, 1], 1),  # a tie goes to the first seen
        ([0, 1, 1, 0], 0),
        ([None, None, 2], 2),  # no answer is no vote
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_class(classes, expected):
    assert majority_class(classes) == expected


def test_answer_classes_compare_with_first_members_that_one_first():
    asked = []

    def same(first, other):
        asked.append((first, other))
        return float(first) == float(other)

    answers = ["1", None, "1.0", "2", "1", "2.0", "1.00"]
    assert answer_classes(answers, same) == [0, None, 0, 1, 0, 1, 0]
    # equal strings are never compared; "2.0" is asked of class 0, then of class 1
    assert asked == [("1", "1.0"), ("1", "2"), ("1", "2.0"), ("2", "2.0"), ("1", "1.00")]


def test_answer_classes_do_not_chain():
    # b is like a, c is like b but not like a: c starts a class of its own
    same = lambda first, other: (first, other) in {("a", "b"), ("b", "c")}  # noqa: E731
    assert answer_classes(["a", "b", "c"], same) == [0, 0, 1]


def test_maj_at_k_of_all_samples():
    assert maj_at_k([0, 1, 1, None], [True, False, False, False], 4, seed=0) == 0.0
    assert maj_at_k([0, 1, 0, None], [True, False, True, False], 4, seed=0) == 1.0
    assert maj_at_k([None, None], [False, False], 2, seed=0) == 0.0


def test_maj_at_k_of_fewer_samples_is_a_seeded_mean_over_subsets():
    classes, correct = [0, 0, 0, 1], [True, True, True, False]
    # k = 1 is the accuracy, 3/4, here over 64 random picks
    values = [maj_at_k(classes, correct, 1, seed) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.75, abs=0.05)
    assert len(set(values)) > 1
    assert maj_at_k(classes, correct, 1, 3) == maj_at_k(classes, correct, 1, 3)
    # of any three at least two are right
    assert maj_at_k(classes, correct, 3, 0) == 1.0


def test_maj_at_k_refuses():
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k: {k}"):
            maj_at_k([0, 1], [True, False], k, 0)


def test_bootstrap_interval():
    assert bootstrap_interval([0.5] * 10) == (0.5, 0.5)
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values)
    # the mean of 100 coins has σ = 0.05: 0.5 ± 1.96·0.05
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)
    assert bootstrap_interval(values) == (low, high)
    other = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(other, seed=0) != bootstrap_interval(other, seed=1)


class FakePool:
    """Judges by the given pairs; remembers what it was asked."""

    def __init__(self, equal=()):
        self.equal, self.asked = set(equal), []

    def verify(self, items):
        self.asked += items
        return [Verdict.correct if item[1:] in self.equal else Verdict.wrong for item in items]


def generation(answer, verdict, length=10, truncated=False):
    return {
        "text": f"… {answer}",
        "answer": answer,
        "verdict": verdict,
        "format": answer is not None,
        "thinking": True,
        "length": length,
        "truncated": truncated,
    }


def decoding(num_generations):
    return Decoding("raw", "boxed", 8, 8, num_generations, 1.0, 0, 1.0, 2, 0)


def records():
    wrong, right = Verdict.wrong.value, Verdict.correct.value
    return [
        {
            "id": "a",
            "answer": "1",
            "greedy": [generation("1", right, length=20)],
            "sampled": [
                generation("1", right),
                generation("01", right),
                generation("2", wrong),
                generation(None, Verdict.unparsable.value, truncated=True),
            ],
        },
        {
            "id": "b",
            "answer": "5",
            "greedy": [generation(None, Verdict.unparsable.value, length=40, truncated=True)],
            "sampled": [
                generation("7", wrong),
                generation("5", right),
                generation("7.0", wrong),
                generation("9", Verdict.timeout.value),
            ],
        },
    ]


def test_summary_of_two_problems():
    result = summarise(records(), decoding(4), FakePool({("7", "7.0")}), {"prompts_too_long": 3})
    metrics = result["metrics"]
    assert metrics["greedy_pass@1"] == 0.5
    assert metrics["avg@4"] == (2 / 4 + 1 / 4) / 2
    # c = 2 and 1 of 4: 5/6 and 1/2
    assert metrics["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert metrics["pass@4"] == 1.0
    assert metrics["maj@4"] == 0.5  # 1, 01 against 2; 7, 7.0 against 5 and 9
    assert metrics["greedy/format_rate"] == 0.5
    assert metrics["greedy/truncation_rate"] == 0.5
    assert metrics["greedy/mean_length"] == 30.0
    assert metrics["sampled/format_rate"] == 7 / 8
    assert metrics["sampled/mean_length"] == 10.0
    assert result["intervals"].keys() == metrics.keys()
    assert result["counts"] == {
        "problems": 2,
        "generations": 10,
        "prompts_too_long": 3,
        "verdict/correct": 4,
        "verdict/wrong": 3,
        "verdict/unparsable": 2,
        "verdict/timeout": 1,
        "verdict/error": 0,
    }


def test_a_right_answer_never_joins_the_class_of_a_wrong_one():
    """`verify` is not symmetric: "5" may pass as an answer to a gold "7", and right stays right."""
    pool = FakePool({("7", "5"), ("7", "7.0")})
    result = summarise(records(), decoding(4), pool, {})
    assert result["metrics"]["maj@4"] == 0.5
    # two right of four make the majority, whatever the wrong ones would be taken for
    row = records()[1] | {"sampled": [generation("7", "wrong"), generation("5", "correct")] * 2}
    row["sampled"].append(generation("5.0", "correct"))
    assert summarise([row], decoding(5), pool, {})["metrics"]["maj@5"] == 1.0
    assert not any("5" in item[1:] for item in pool.asked)


def test_greedy_only():
    rows = [{k: v for k, v in r.items() if k != "sampled"} for r in records()]
    result = summarise(rows, decoding(0), FakePool(), {})
    assert set(result["metrics"]) == {
        "greedy_pass@1",
        "greedy/format_rate",
        "greedy/truncation_rate",
        "greedy/thinking_rate",
        "greedy/mean_length",
    }
    assert result["counts"]["generations"] == 2


def test_an_evaluation_on_disk(tmp_path):
    path = str(tmp_path / "eval" / "before.json")
    result = describe({"metrics": {"greedy_pass@1": 0.5}}, "arithmetic", "tiny")
    write(path, result, [{"id": "a"}, {"id": "b"}])
    assert read_json(path) == {
        "source": "arithmetic",
        "protocol": "custom",
        "model": "tiny",
        "metrics": {"greedy_pass@1": 0.5},
    }
    lines = (tmp_path / "eval" / "before.generations.jsonl").read_text().splitlines()
    assert lines == ['{"id": "a"}', '{"id": "b"}']
