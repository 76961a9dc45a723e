import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.objectives.surrogate import policy_loss
from jaxrl_reason.selection import (
    high_entropy_tokens,
    mixed_groups,
    perplexity_window,
    weakest_hints,
)
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")


def test_mixed_groups():
    np.testing.assert_array_equal(
        mixed_groups(np.array([0, 1, 4, 7, 8]), 8), [False, True, True, True, False]
    )
    np.testing.assert_array_equal(mixed_groups(np.array([0, 1]), 1), [False, False])
    assert mixed_groups(np.zeros(0, int), 8).shape == (0,)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        # ascending: candidates 4, 1, 3, 0, 2 (values 1, 2, 2, 5, 9: the tie to the earlier); C − K = 3
        (0.0, [4, 1]),
        (0.33, [4, 1]),  # ⌊0.99⌋
        (0.34, [1, 3]),  # ⌊1.02⌋
        (0.5, [1, 3]),
        (0.67, [3, 0]),
        (0.99, [3, 0]),
        (1.0, [0, 2]),
    ],
)
def test_perplexity_window_slides_from_easy_to_hard(progress, expected):
    perplexity = np.array([5.0, 2.0, 9.0, 2.0, 1.0])
    np.testing.assert_array_equal(perplexity_window(perplexity, 2, progress), expected)


def test_perplexity_window_against_decimals():
    """⌊ρ(C − K)⌋ of ρ = n/100 in integers; in floats 0.29·100 is 28.999…"""
    order = np.arange(130)
    for percent in range(101):
        for keep in (30, 29, 130):
            start = percent * (130 - keep) // 100
            window = perplexity_window(order.astype(float), keep, percent / 100)
            np.testing.assert_array_equal(window, order[start : start + keep])


def test_perplexity_window_does_not_depend_on_the_order_given():
    rng = np.random.default_rng(0)
    perplexity, order = rng.random(20), rng.permutation(20)
    straight, shuffled = (perplexity_window(x, 6, 0.4) for x in (perplexity, perplexity[order]))
    np.testing.assert_array_equal(order[shuffled], straight)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_of_training_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        perplexity_window(np.arange(5.0), 2, progress)


@pytest.mark.parametrize("keep", [0, 6])
def test_more_prompts_than_candidates_are_refused(keep):
    with pytest.raises(ValueError, match=str(keep)):
        perplexity_window(np.arange(5.0), keep, 0.5)


def test_weakest_hints_by_hand():
    successes = np.zeros((3, 4, 2), bool)  # 3 levels, 4 problems, 2 rollouts
    successes[1, 0, 1] = successes[2, 0, 0] = True  # the weaker level wins
    successes[0, 1] = True  # the first rollout
    successes[2, 3, 1] = True
    np.testing.assert_array_equal(weakest_hints(successes), [[1, 1], [0, 0], [-1, -1], [2, 1]])


def test_weakest_hints_against_loops():
    rng = np.random.default_rng(0)
    for shape in [(3, 50, 4), (1, 9, 1), (4, 9, 8), (2, 0, 3), (0, 3, 2)]:
        successes = rng.random(shape) < 0.15
        hints = weakest_hints(successes)
        np.testing.assert_array_equal(hints, oracles.weakest_hints(successes))
        assert hints.shape == (shape[1], 2) and np.issubdtype(hints.dtype, np.integer)


def test_high_entropy_tokens_by_hand():
    # 6 tokens: ⌈0.2·6⌉ = 2; 3.0 and the earlier of two 2.0, in the whole batch and not in each row
    entropy = jnp.array([[2.0, 3.0, 1.0], [0.5, 2.0, 9.0], [0.1, 9.0, 9.0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    expected = [[True, True, False], [False] * 3, [False] * 3]
    np.testing.assert_array_equal(high_entropy_tokens(entropy, mask, 0.2), expected)


@pytest.mark.parametrize("fraction", [0.2, 0.15, 0.5, 0.01, 1.0])
def test_high_entropy_tokens_against_loops(fraction):
    call = jax.jit(lambda entropy, mask: high_entropy_tokens(entropy, mask, fraction))
    for seed in range(4):
        data = oracles.ragged_batch(seed, length=25)
        entropy = np.round(data["entropy"], 1)  # ties
        chosen = call(jnp.asarray(entropy), jnp.asarray(data["mask"]))
        expected = oracles.high_entropy_tokens(entropy, data["mask"], fraction)
        np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("tokens", [0, 1, 5, 99, 100, 101])
def test_the_count_is_exact_where_all_entropies_are_equal(tokens):
    mask = (jnp.arange(120) < tokens).reshape(8, 15)
    chosen = np.asarray(high_entropy_tokens(jnp.zeros((8, 15)), mask, 0.15)).reshape(-1)
    np.testing.assert_array_equal(chosen, np.arange(120) < -(-tokens * 15 // 100))


def test_all_of_the_tokens_are_the_mask():
    data = oracles.ragged_batch(0)
    mask = jnp.asarray(data["mask"])
    np.testing.assert_array_equal(
        high_entropy_tokens(jnp.asarray(data["entropy"]), mask, 1.0), mask
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_the_mask_hides_is_never_chosen(garbage):
    data = oracles.ragged_batch(1)
    entropy, mask = jnp.asarray(data["entropy"]), jnp.asarray(data["mask"])
    clean, dirty = (jnp.where(mask, entropy, value) for value in (0.0, garbage))
    chosen = high_entropy_tokens(dirty, mask)
    np.testing.assert_array_equal(chosen, high_entropy_tokens(clean, mask))
    assert not np.any(chosen & ~mask)


def test_as_a_mask_it_counts_in_the_denominator_too():
    """ρ = 1, Â = 1: the loss is −1 however few tokens are kept, and the others have no gradient."""
    data = oracles.ragged_batch(2)
    logp, mask = jnp.asarray(data["logp"]), jnp.asarray(data["mask"])
    chosen = high_entropy_tokens(jnp.asarray(data["entropy"]), mask)
    loss = lambda x: policy_loss(x, logp, jnp.ones(12), chosen, loss_type="token_mean")[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(logp)
    np.testing.assert_allclose(value, -1.0, rtol=1e-6)
    expected = np.where(chosen, -1.0 / np.asarray(chosen).sum(), 0.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
