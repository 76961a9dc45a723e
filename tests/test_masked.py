import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason import masked

pytestmark = pytest.mark.usefixtures("strict_jax")

X = jnp.array([[1.0, 2.0, 6.0, jnp.nan], [4.0, jnp.inf, -jnp.inf, jnp.nan], [jnp.nan] * 4])
MASK = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


def test_sum_mean_and_std_by_row():
    np.testing.assert_array_equal(masked.masked_sum(X, MASK, axis=-1), [9.0, 4.0, 0.0])
    np.testing.assert_array_equal(masked.masked_mean(X, MASK, axis=-1), [3.0, 4.0, 0.0])
    # (1 − 3)² + (2 − 3)² + (6 − 3)² = 14; over 3 − 1 = 2; one value or none has no spread
    np.testing.assert_allclose(masked.masked_std(X, MASK, axis=-1), [7.0**0.5, 0.0, 0.0])
    np.testing.assert_allclose(
        masked.masked_std(X, MASK, axis=-1, ddof=0), [(14 / 3) ** 0.5, 0.0, 0.0]
    )


def test_over_all_axes():
    assert masked.masked_sum(X, MASK) == 13.0
    assert masked.masked_mean(X, MASK) == 3.25  # 13 / 4
    # centred at 3.25: 2.25² + 1.25² + 2.75² + 0.75² = 14.75; over 3
    np.testing.assert_allclose(masked.masked_std(X, MASK), (14.75 / 3) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("statistic", [masked.masked_sum, masked.masked_mean, masked.masked_std])
def test_garbage_under_the_mask_changes_neither_value_nor_gradient(statistic):
    mask = jnp.array([True, False, True, False, False])
    clean = jnp.array([2.0, 0.0, 5.0, 0.0, 0.0])
    dirty = jnp.array([2.0, jnp.nan, 5.0, jnp.inf, -jnp.inf])
    value, gradient = jax.value_and_grad(statistic)(dirty, mask)
    expected, expected_gradient = jax.value_and_grad(statistic)(clean, mask)
    assert value == expected
    np.testing.assert_array_equal(gradient, expected_gradient)
    assert np.all(np.asarray(gradient)[[1, 3, 4]] == 0.0)


def test_gradient_of_an_empty_mean_is_zero():
    value, gradient = jax.value_and_grad(masked.masked_mean)(X[0], jnp.zeros(4, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_results_are_float32_whatever_comes_in():
    mask = jnp.array([True, True, False])
    for x in (
        jnp.array([True, True, True]),
        jnp.array([1, 1, 1]),
        jnp.ones(3, jnp.bfloat16),
    ):
        total = masked.masked_sum(x, mask)
        assert total.dtype == jnp.float32 and total == 2.0
    # summed in float32: bfloat16 would stop at 256
    many = jnp.ones(1000, jnp.bfloat16)
    assert masked.masked_sum(many, jnp.ones(1000, bool)) == 1000.0


def test_the_mask_may_be_numbers():
    assert masked.masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])) == 2.0
    assert masked.masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])) == 2.0


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (100, 0.15, 15),  # float32 0.15·100 is above 15
        (100, 0.1, 10),
        (101, 0.1, 11),
        (1, 0.1, 1),
        (0, 0.1, 0),
        (10, 0.3, 3),  # 0.3·10 = 3.0000001 in float32
        (10, 1.0, 10),
        (4096, 0.2, 820),  # 819.2
        (30, 0.07, 3),  # 2.1
    ],
)
def test_ceil_fraction_is_exact(count, fraction, expected):
    assert masked.ceil_fraction(jnp.array([count]), fraction)[0] == expected


def test_ceil_fraction_of_a_tiny_share_of_something_is_one():
    np.testing.assert_array_equal(masked.ceil_fraction(jnp.array([0, 1, 5000]), 1e-5), [0, 1, 1])


def test_top_mask_takes_exactly_so_many_and_ties_go_to_the_earlier():
    x = jnp.array(
        [
            [1.0, 3.0, 3.0, 3.0, 2.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [5.0, jnp.nan, 4.0, jnp.inf, 6.0],
            [1.0, 2.0, 3.0, 4.0, 5.0],
        ]
    )
    mask = jnp.array([[1] * 5, [0, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1] * 5], bool)
    top = masked.top_mask(x, mask, jnp.array([2, 2, 3, 0]))
    np.testing.assert_array_equal(
        top.astype(int),
        [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [1, 0, 1, 0, 0],  # only two are there
            [0, 0, 0, 0, 0],
        ],
    )


def test_merge_metrics_adds_pairs_and_keeps_the_larger_maximum():
    one = jnp.float32(1)
    a = {"loss": (2 * one, one), "gap/max": 3 * one}
    b = {"loss": (5 * one, 3 * one), "gap/max": 2 * one}
    assert masked.merge_metrics(a, b) == {"loss": (7.0, 4.0), "gap/max": 3.0}
