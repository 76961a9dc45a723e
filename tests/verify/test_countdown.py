import json

import pytest

from jaxrl_reason.verify.countdown import compare_countdown, extract_countdown
from jaxrl_reason.verify.verdict import Verdict


def judge(expression, nums=(3, 5, 30), target=45):
    return compare_countdown(json.dumps({"nums": list(nums), "target": target}), expression)


@pytest.mark.parametrize(
    "expression",
    [
        "30 + 3 * 5",
        "3*5+30",
        "(30 + (3 × 5))",
        "30 + 3 * 5 = 45",
        "30 + 3 * 5 = 46",  # what follows the = is not read
        r"30 + 3 \times 5",
        r"30 + 3 \cdot 5",
        r"\left( 30 \right) + 3·5",
        r"$30+3\cdot5$",
    ],
)
def test_correct(expression):
    assert judge(expression) is Verdict.correct


@pytest.mark.parametrize(
    "expression",
    [
        "30 + 5 * 3 * 1",  # a number too many
        "30 + 15",  # a number that was not given
        "45",
        "30 + 5",  # one left unused
        "30 + 5 + 5 + 5",  # one used twice
        "30 * 3 * 5",  # another value
        "30 / (5 - 5) + 3",  # division by zero
        "3 / (30 - 30) * 5",
        "335",
    ],
)
def test_wrong(expression):
    assert judge(expression) is Verdict.wrong


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " = 45",
        "30 + 3 ** 5",
        "30 + 3 // 5",
        "-3 + 30",
        "30 + +3",
        "30 - (-3)",
        "3_0 + 15",
        "0x1e + 15",
        "3e1",
        "30.0 + 3 * 5",
        "3(5) + 30",
        "3 5 + 30",
        "(30 + 3 * 5",
        "30 + 3 * 5)",
        "{30} + 3 * 5",
        "30 + 3 * 5; import os",
        "__import__('os')",
        r"\frac{3}5",
        "F",
        "٣ + 5",
        "30 + three",
        "(" * 60 + "30" + ")" * 60,
        "(" * 10**5,
        "1" * 10**5,
        "30 + 3 * 5" + " " * 1000,
    ],
)
def test_unparsable(expression):
    assert judge(expression) is Verdict.unparsable


def test_fractions_are_exact():
    assert judge(r"\frac{3}{5} \div 30", target=0.02) is Verdict.correct
    assert judge(r"\dfrac{30}{3} + 5", target=15) is Verdict.correct
    assert judge("30 / (1 / 3 * 1)", nums=(30, 1, 3, 1), target=90) is Verdict.correct
    assert judge("8 / (3 - 8 / 3)", nums=(8, 3, 8, 3), target=24) is Verdict.correct


def test_left_to_right():
    assert judge("30 - 5 - 3", target=22) is Verdict.correct
    assert judge("30 / 5 / 3", target=2) is Verdict.correct


def test_tolerance_is_below_1e_5():
    assert judge("1 / 3", nums=(1, 3), target=0.33333) is Verdict.correct
    assert judge("1 / 3", nums=(1, 3), target=0.3333) is Verdict.wrong
    assert judge("1 / 100000", nums=(1, 100000), target=0) is Verdict.wrong


def test_malformed_gold_raises():
    with pytest.raises(ValueError):
        compare_countdown("not json", "30")
    with pytest.raises(KeyError):
        compare_countdown("{}", "30")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (r"<answer>1+2</answer> \boxed{3}", "1+2"),
        (r"\boxed{3} <answer>1+2</answer>", "1+2"),
        (r"\boxed{1+2}", "1+2"),
        (r"<answer>\boxed{1+2}</answer>", "1+2"),
        (r"<answer></answer> \boxed{3}", None),
        ("1+2", None),
    ],
)
def test_answer_tag_beats_box(text, expression):
    assert extract_countdown(text) == expression
