import json
import math

import numpy as np
import pytest

from jaxrl_reason import perturb
from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.report import bars
from jaxrl_reason.signals.perturbation import extreme_positions, replacement_token
from jaxrl_reason.types import Rollouts
from tests.test_train import SMALL, command, rows, run

ENTROPY = [0.5, 2.0, 0.0, 2.0, 1.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "fraction", "most", "expected"),
    [
        ("high_entropy", 0.05, 4, [6]),  # ⌈0.35⌉ = 1
        ("high_entropy", 0.4, 4, [6, 1, 3]),  # ⌈2.8⌉ = 3, the earlier of the equals first
        ("high_entropy", 0.4, 2, [6, 1]),
        ("low_entropy", 0.05, 4, [2]),
        ("low_entropy", 0.4, 4, [2, 5, 0]),
    ],
)
def test_positions_by_hand(kind, fraction, most, expected):
    assert extreme_positions(ENTROPY, fraction, kind, most) == expected


def test_the_number_of_positions_is_counted_in_decimals():
    assert 0.07 * 100 > 7  # in binary
    assert len(extreme_positions(np.arange(100.0), 0.07, "low_entropy", 100)) == 7
    assert len(extreme_positions(np.arange(101.0), 0.07, "low_entropy", 100)) == 8
    assert extreme_positions([], 0.5, "high_entropy", 4) == []
    with pytest.raises(ValueError, match="kind: 'top'"):
        extreme_positions(ENTROPY, 0.1, "top", 4)


def test_replacements_are_other_tokens_each_as_likely():
    allowed = [3, 4, 7, 9]
    drawn = [replacement_token(7, allowed, 0, f"p{i}", 5) for i in range(3000)]
    counts = {token: drawn.count(token) for token in sorted(set(drawn))}
    assert list(counts) == [3, 4, 9]
    five_sigma = 5 * math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert all(abs(n - 1000) < five_sigma for n in counts.values())


def test_replacements_depend_on_seed_problem_and_position_alone():
    allowed = range(10_000)
    draw = lambda *key: replacement_token(0, allowed, *key)  # noqa: E731
    assert draw(1, "a", 5) == draw(1, "a", 5)
    others = {draw(1, "a", 5), draw(2, "a", 5), draw(1, "b", 5), draw(1, "a", 6)}
    assert len(others) == 4
    with pytest.raises(ValueError, match="no allowed token besides 8"):
        replacement_token(8, [8], 0, "a", 0)


def test_prefix_and_continuation_share_one_budget():
    more = Rollouts(
        tokens=np.array([[7, 8, 1, 0, 0], [7, 8, 9, 7, 1], [7, 8, 9, 9, 9]], np.int32),
        mask=None,
        logp=None,
        lengths=np.array([3, 5, 5]),
        truncated=np.array([False, False, True]),
    )
    whole = perturb.join([[5], [5, 6], [5, 6, 5, 6, 5]], more, budget=5)
    # row 1 has three tokens left, and its end token came fifth; row 2 has none left
    np.testing.assert_array_equal(whole.tokens, [[5, 7, 8, 1, 0], [5, 6, 7, 8, 9], [5, 6, 5, 6, 5]])
    np.testing.assert_array_equal(whole.lengths, [4, 5, 5])
    np.testing.assert_array_equal(whole.truncated, [False, True, True])
    np.testing.assert_array_equal(whole.mask.sum(axis=1), whole.lengths)


def solved(entropy):
    ids = list(range(20, 20 + len(entropy)))
    problem = Problem("p", "q", "1")
    return perturb.Solved(problem, [2, 3], [*ids, 1], np.array(entropy), answer_start=5)


def test_one_copy_per_position_and_one_control_for_each():
    study = perturb.Study(fraction=0.3, max_positions=2)
    copies = perturb.make_copies(study, [solved(ENTROPY)], allowed=[20, 30, 31])
    by_arm = {arm: [c for c in copies if c.arm == arm] for arm in perturb.ARMS}
    assert [(c.position, c.rank) for c in by_arm["high_entropy"]] == [(6, 0), (1, 1)]
    assert [(c.position, c.rank) for c in by_arm["low_entropy"]] == [(2, 0), (5, 1)]
    assert [c.position for c in by_arm["control"]] == [6, 1, 2, 5]
    assert all(c.token == 20 + c.position for c in by_arm["control"])
    assert all(c.token in (20, 30, 31) for c in copies if c.arm != "control")


def test_a_position_of_both_kinds_has_one_control():
    copies = perturb.make_copies(perturb.Study(), [solved([0.7])], allowed=[30, 31])
    assert [c.arm for c in copies] == ["high_entropy", "low_entropy", "control"]
    assert copies[0].token == copies[1].token


def test_accuracy_is_a_mean_over_problems_of_means_over_copies():
    def record(problem, arm, right, in_answer=False):
        verdict = "correct" if right else "wrong"
        facts = {"in_answer": in_answer, "same_response": right}
        return {"id": problem, "arm": arm, "verdict": verdict} | facts

    high = [("a", 1), ("a", 0), ("b", 0)]
    low = [("a", 1), ("b", 1), ("b", 1), ("b", 0)]
    records = [record(p, "high_entropy", r) for p, r in high]
    records += [record(p, "low_entropy", r, in_answer=True) for p, r in low]
    records += [record(p, "control", 1) for p in "ab"]
    result = perturb.summarise(records, seed=0)
    assert result["metrics"] == pytest.approx(
        {
            "accuracy/high_entropy": (1 / 2 + 0) / 2,
            "accuracy/low_entropy": (1 + 2 / 3) / 2,
            "accuracy/control": 1.0,
            "difference/high_entropy - low_entropy": (-1 / 2 - 2 / 3) / 2,
            "difference/high_entropy - control": -0.75,
            "difference/low_entropy - control": -1 / 6,
        }
    )
    # resampling the two problems gives differences from −2/3 (b twice) to −1/2 (a twice)
    low, high = result["intervals"]["difference/high_entropy - low_entropy"]
    assert (low, high) == pytest.approx((-2 / 3, -1 / 2))
    assert result["counts"]["continuations/low_entropy"] == 4
    assert result["counts"]["in_answer/low_entropy"] == 4
    assert result["counts"]["same_response/control"] == 2


def test_bars(tmp_path):
    metrics = {"high_entropy": 0.2, "low_entropy": 0.9, "control": 1.0}
    intervals = {"high_entropy": (0.1, 0.3), "low_entropy": (0.8, 1.0), "control": (1.0, 1.0)}
    bars.draw(str(tmp_path / "bars.png"), metrics, intervals, "a title")
    assert (tmp_path / "bars.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_problems", 0),
        ("fraction", 0.0),
        ("fraction", 0.6),
        ("max_positions", 0),
        ("max_problems", 0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("seed", -1),
    ],
)
def test_bad_flags_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value}"):
        perturb.Study(**{name: value})


@pytest.mark.slow
def test_the_study_of_a_run(tmp_path):
    folder = str(tmp_path)
    tool = [*command("perturb", folder)[:3], f"--workdir={folder}"]
    done = run([*tool, "--fraction=2"])
    assert done.returncode != 0
    assert "error: --fraction: 2.0 is not allowed; allowed: in (0, 0.5]" in done.stderr
    done = run(tool)
    assert done.returncode != 0
    assert "config.json: no such file, so this is no run folder" in done.stderr

    done = run(command("train", folder, *SMALL, "--config.num_steps=2"))
    assert done.returncode == 0, done.stderr
    few = ["--num_problems=5", "--max_problems=64", "--fraction=0.2", "--max_positions=2"]
    done = run([*tool, *few])
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "perturb" / "step_2.json").read_text())
    counts = result["counts"]
    assert counts["problems"] == 5 <= counts["tried"] <= 64
    # greedily, the same prefix leads to the same response
    assert result["metrics"]["accuracy/control"] == 1.0
    assert counts["same_response/control"] == counts["continuations/control"] > 0
    assert 5 <= counts["continuations/high_entropy"] <= 10
    records = rows(str(tmp_path / "perturb"), "step_2.jsonl")
    assert len(records) == sum(counts[f"continuations/{arm}"] for arm in perturb.ARMS)
    for record in records:
        assert (record["token"] == record["original"]) == (record["arm"] == "control")
        assert len(record["token_ids"]) > record["position"]
    assert (tmp_path / "perturb" / "step_2.png").exists()
    again = run([*tool, *few])
    assert again.returncode == 0, again.stderr
    assert records == rows(str(tmp_path / "perturb"), "step_2.jsonl")
