import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.rewards.overlong import overlong_penalty

pytestmark = pytest.mark.usefixtures("strict_jax")


@pytest.mark.parametrize(
    ("length", "penalty"),
    # L_max = 100, L_cache = 20: (80 − L)/20 between 80 and 100 tokens
    [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (5000, -1)],
)
def test_by_hand(length, penalty):
    result = overlong_penalty(jnp.array([length]), 100, 20)
    np.testing.assert_allclose(result, [penalty], rtol=1e-6)
    assert result.dtype == jnp.float32


def test_a_right_answer_at_the_limit_ends_at_zero():
    np.testing.assert_array_equal(1.0 + overlong_penalty(jnp.array([100]), 100, 20), [0.0])


def test_against_loops():
    lengths = np.arange(0, 50)
    expected = [min(max((40 - 7 - n) / 7, -1.0), 0.0) for n in lengths]
    np.testing.assert_allclose(overlong_penalty(jnp.asarray(lengths), 40, 7), expected, atol=1e-6)


def test_it_never_rises_with_the_length_and_order_is_kept():
    penalty = np.asarray(overlong_penalty(jnp.arange(200), 128, 128))
    assert np.all(np.diff(penalty) <= 0) and penalty[0] == 0.0 and penalty[-1] == -1.0
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(overlong_penalty(jnp.asarray(order), 128, 128), penalty[order])


@pytest.mark.parametrize("cache", [0, -1, 129])
def test_a_cache_of_no_tokens_or_more_than_all_is_refused(cache):
    with pytest.raises(ValueError, match=str(cache)):
        overlong_penalty(jnp.arange(3), 128, cache)
