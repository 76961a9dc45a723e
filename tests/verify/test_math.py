import os
from pathlib import Path

import pytest

from jaxrl_reason.verify import Verdict, VerifierPool, verify
from jaxrl_reason.verify.math import compare_math
from tests.verify import verifier_cases

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("JAXRL_REASON_DATA", REPOSITORY.parent / "shared" / "data"))
CASES = DATA / "verifier_cases.jsonl"

# Measured with math_verify 0.9.0: 281 of 301 cases of plain equivalence (math_verify itself: 90 %).
EQUIVALENCE_FLOOR = 0.92


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("5", "5"),
        ("5", "05"),
        ("5", "5.0"),
        ("5", "$5$"),
        ("5", "5."),
        ("5", r"5 \text{ cm}"),
        ("5", r"\$5"),
        ("50", r"50^\circ"),
        ("x=5", "5"),
        ("5", "x=5"),
        ("-5", "−5"),
        ("0.5", r"\frac{1}{2}"),
        ("1/2", r"\dfrac12"),
        ("1/3", "0.333333"),
        ("40/9", "4 4/9"),
        ("3/2", r"1\frac{1}{2}"),
        ("12345", "12,345"),
        ("12345", "12{,}345"),
        ("12345", "12 345"),
        ("10", r"10\%"),
        ("0.04", r"4\%"),
        ("2.7778e-6", r"2.7778 \times 10^{-6}"),
        ("4e33", r"4 \cdot 10^{33}"),
        ("1e400", "1e400"),
        ("1,2", "2,1"),
        ("1,2", r"\{1, 2\}"),
        ("1,2", r"1 \text{ and } 2"),
        ("[0,1)", r"\left[0, 1\right)"),
        ("(0,1)", "0 < x < 1"),
        (r"(-\infty, 3]", r"x \le 3"),
        (r"\frac{\pi}{2}", "π/2"),
        (r"\sqrt{8}", "2√2"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"y = -\frac{1}{2}x", "x + 2y = 0"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        (r"\sin^2 t", r"1 - \cos^2(t)"),
        ("-3./2", "-1.5"),
        ("C", r"\text{(C)}"),
        ("Monday", r"\text{Monday}"),
        (r"\text{even}", "even"),
        ("True", "true"),
        ("np.arcsin(10/13)", "np.arcsin(10/13)"),
        ("12:00", "12:00"),
        ("4", "The answer is 4"),
        ("2/3", "So the probability is $\\frac{2}{3}$ in the end"),
        ("8722", "赚了8722美元"),
    ],
)
def test_correct(gold, prediction):
    assert compare_math(gold, prediction) is Verdict.correct


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("5", "6"),
        ("5", "5.001"),
        ("44/9", "4 4/9"),
        ("0", "1 000"),
        ("5", "4,5"),
        ("4", "4 or 5"),
        ("1,2", "1,2,3"),
        ("1.2", "1,2"),
        ("2", "2abc"),
        ("2", "2t"),
        ("2t", "2"),
        ("[0,1)", "[0,1]"),
        ("2x + z = 1", "1"),
        ("Monday", r"\text{Friday}"),
        ("C", r"\text{(D)}"),
        ("12:00", "1:00"),
        ("np.arcsin(10/13)", "1"),
        # Six decimals would make all of these equal.
        ("1e-8", "2e-8"),
        ("6.67e-11", "0"),
        ("0", "1e-9"),
        ("2.7778e-6", r"2.8 \times 10^{-6}"),
        (r"\frac{1}{10^{20}}", r"2.0 \times 10^{-20}"),
    ],
)
def test_wrong(gold, prediction):
    assert compare_math(gold, prediction) is Verdict.wrong


@pytest.mark.parametrize(
    "prediction",
    ["", " ", "$$", "!!!", r"\frac{1}{", r"5\sqrt{3}+", "5/0", "it is unknown", "(" * 10**5],
)
def test_unparsable(prediction):
    assert compare_math("5", prediction) is Verdict.unparsable


def test_gold_comes_first():
    assert compare_math("x = 5", "5") is Verdict.correct
    assert compare_math("x + 3z = 5", "5") is Verdict.wrong


def test_blank_gold_raises():
    with pytest.raises(ValueError, match="blank gold"):
        compare_math(" ", "5")


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [
        ("4", Verdict.correct),
        (r"First \boxed{5}, no: \boxed{4}. Done, not 7.", Verdict.correct),
        (r"\boxed{4} \boxed{5}", Verdict.wrong),
        (r"4 is it \boxed{}", Verdict.unparsable),
        (r"\boxed{4", Verdict.unparsable),
        ("<answer>4</answer>", Verdict.correct),
        (None, Verdict.unparsable),
    ],
)
def test_verify_takes_answers_and_responses(prediction, verdict):
    assert verify("4", prediction) is verdict


def test_verify_other_kinds():
    gold = '{"nums": [1, 2], "target": 3}'
    assert verify(gold, "<answer>1+2</answer>", kind="countdown") is Verdict.correct
    assert verify(gold, r"\boxed{1+2}", kind="countdown") is Verdict.correct
    assert verify("5", "5", kind="tests.verify.faulty:same_text") is Verdict.correct
    with pytest.raises(ValueError, match="unknown kind"):
        verify("5", "5", kind="physics")


@pytest.mark.skipif(not CASES.exists(), reason="needs verifier_cases.jsonl")
def test_agreement_with_collected_cases():
    cases = [case for case in verifier_cases.read(CASES) if case["mode"] == "equiv"]
    with VerifierPool(num_workers=2, timeout_s=20) as pool:
        judged = verifier_cases.judge(cases, pool)
    agreeing = [case for case, verdict in judged if verifier_cases.agrees(case, verdict)]
    assert len(agreeing) >= EQUIVALENCE_FLOOR * len(cases)
    assert not [case for case, verdict in judged if verdict is Verdict.timeout]
