import re

import numpy as np
import pytest

from jaxrl_reason.signals.gold import gold_rows, step_ends
from jaxrl_reason.verify import AnswerTokens

LINE = re.compile(rb"\n")
GOLD = ([90, 91, 92], [False, True, False])  # opening, answer, closing


@pytest.mark.parametrize(
    ("pieces", "max_steps", "expected"),
    [
        ([b"a", b"\n", b"b", b"\n"], 9, [2, 4]),
        ([b"a", b"\n", b"b"], 9, [2, 3]),  # what is left after the last end is a step
        ([b"a\nb", b"c"], 9, [1, 2]),  # a token that holds an end and more closes the step
        ([b"a", b"\n", b"\n", b"b"], 9, [2, 3, 4]),
        ([b"a\n", b"b\n", b"c\n"], 2, [1, 3]),  # further steps join the last
        ([b"a\n", b"b\n", b"c\n"], 1, [3]),
        ([b"a", b"b"], 9, [2]),
        ([b"", b"a\n", b""], 9, [2, 3]),
        ([], 9, [0]),
    ],
)
def test_step_ends(pieces, max_steps, expected):
    assert step_ends(pieces, LINE, max_steps) == expected


def test_the_default_expression_cuts_at_blank_lines_and_sentence_ends():
    from jaxrl_reason.config import PacrSection

    pattern = re.compile(PacrSection().step_end.encode())
    pieces = [b"3", b".", b"5", b" is. ", b"Then", b"\n", b"\n", b"so", b"!"]
    assert step_ends(pieces, pattern, 9) == [4, 7, 9]  # not inside 3.5


def make(tokens, pieces, spans, size=1, max_steps=3, step_end="\n"):
    tokens = np.array(tokens, np.int32)
    return gold_rows(tokens, pieces, spans, [GOLD] * len(tokens), size, step_end, max_steps)


def test_rows_by_hand():
    """Two lines of thinking, then an answer whose opening is token 4; the padding is ignored."""
    tokens = [[1, 2, 3, 4, 5, 6, 7, 0]]
    pieces = [[b"a", b"\n", b"b", b"\n", b"\\boxed{", b"7", b"}"]]
    got = make(tokens, pieces, [AnswerTokens(4, 5, 6)])
    assert got.num_steps.tolist() == [2]
    # c_0, c_1, c_2, and the fourth column repeats the last
    rows = [got.tokens[i][got.mask[i]].tolist() for i in got.source[0]]
    assert rows == [
        [90, 91, 92],
        [1, 2, 90, 91, 92],
        [1, 2, 3, 4, 90, 91, 92],
        [1, 2, 3, 4, 90, 91, 92],
    ]
    assert [np.flatnonzero(got.is_answer[i]).tolist() for i in got.source[0][:3]] == [[1], [3], [5]]
    assert got.step_of_token[0, :7].tolist() == [0, 0, 1, 1, 1, 1, 1]  # the answer: the last step's


def test_no_thinking_is_one_step_without_progress():
    got = make([[5, 6, 7]], [[b"\\boxed{", b"7", b"}"]], [AnswerTokens(0, 1, 2)])
    assert got.num_steps.tolist() == [1]
    assert len(got.tokens) == 1  # c_0 and c_1 are the same row
    assert set(got.source[0].tolist()) == {0}


def test_no_answer_means_that_everything_is_thinking():
    got = make([[1, 2, 3]], [[b"a", b"\n", b"b"]], [None])
    assert got.num_steps.tolist() == [2]
    assert got.step_of_token[0].tolist() == [0, 0, 1]


def test_equal_prefixes_of_a_group_are_scored_once_and_of_other_prompts_not():
    line = [b"a", b"\n"]
    tokens = [[1, 2], [1, 2], [1, 2], [3, 2]]
    got = make(tokens, [line, line, line, [b"c", b"\n"]], [None] * 4, size=2)
    # group 0: the answer alone, and after 1 2; group 1: alone, after 1 2, after 3 2
    assert len(got.tokens) == 5
    assert got.prompt_row.tolist() == [0, 0, 2, 2, 2]
    assert got.source[0].tolist() == got.source[1].tolist()


def test_a_blank_row_has_one_step():
    got = make([[0, 0]], [[]], [None])
    assert got.num_steps.tolist() == [1]
    assert got.source.shape == (1, 4)


def test_the_width_is_that_of_the_most_steps_allowed():
    """It is a shape of the compiled reward."""
    for lines in (1, 3):
        got = make([[1, 2] * lines], [[b"a", b"\n"] * lines], [None], max_steps=5)
        assert got.source.shape == (1, 6)
