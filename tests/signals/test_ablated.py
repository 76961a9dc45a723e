import numpy as np
import pytest

from jaxrl_reason.signals.ablated import ablated_rows
from jaxrl_reason.verify import AnswerTokens

TOKENS = np.arange(100, 160).reshape(3, 20)


def test_opening_and_answer_as_they_were_sampled():
    # row 0: opening at 4…6, answer 6…9; row 1: none; row 2: opening and content in one token
    spans = [AnswerTokens(4, 6, 9), None, AnswerTokens(2, 2, 3)]
    rows, mask, is_answer, source = ablated_rows(TOKENS, spans)
    assert rows.shape == mask.shape == is_answer.shape == source.shape == (3, 8)
    np.testing.assert_array_equal(rows[0], [104, 105, 106, 107, 108, 0, 0, 0])
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(is_answer[0], [0, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(source[0], [0, 0, 6, 7, 8, 0, 0, 0])
    assert not mask[1].any() and not is_answer[1].any()
    np.testing.assert_array_equal(rows[2, :2], [142, 0])
    np.testing.assert_array_equal(is_answer[2], mask[2])


def test_source_reads_the_answers_tokens_in_the_rollout():
    spans = [AnswerTokens(0, 3, 10), AnswerTokens(17, 18, 20), None]
    rows, _, is_answer, source = ablated_rows(TOKENS, spans)
    np.testing.assert_array_equal(
        np.take_along_axis(TOKENS, source, axis=1)[is_answer], rows[is_answer]
    )


def test_a_fixed_stub_takes_the_place_of_the_opening():
    rows, mask, is_answer, _ = ablated_rows(TOKENS, [AnswerTokens(4, 6, 8)] * 3, stub=[7, 8, 9])
    np.testing.assert_array_equal(rows[0], [7, 8, 9, 106, 107, 0, 0, 0])
    np.testing.assert_array_equal(is_answer[0], [0, 0, 0, 1, 1, 0, 0, 0])
    assert mask[0].sum() == 5


@pytest.mark.parametrize(("longest", "length"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 20)])
def test_lengths_are_powers_of_two_up_to_the_rollout(longest, length):
    rows, *_ = ablated_rows(TOKENS, [AnswerTokens(0, 1, longest), None, None])
    assert rows.shape == (3, length)


def test_no_answer_at_all():
    _, mask, *_ = ablated_rows(TOKENS, [None] * 3)
    assert mask.shape == (3, 8) and not mask.any()
