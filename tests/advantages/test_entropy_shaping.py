import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.entropy_shaping import (
    entropy_weights,
    grpo_s_advantages,
    gtpo_advantages,
)
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")

SIZE = 4


@functools.cache
def compiled(method, *settings):
    return jax.jit(lambda *data: method(*data, *settings))


def gtpo(correct, entropy, mask, *settings):
    return compiled(gtpo_advantages, *settings)(correct, entropy, mask)


def grpo_s(correct, entropy, mask, *settings):
    return compiled(grpo_s_advantages, *settings)(correct, entropy, mask)


BOTH = [(gtpo, oracles.gtpo), (grpo_s, oracles.grpo_s)]
METHODS = [gtpo, grpo_s]


def inputs(seed=0, **shape):
    data = oracles.ragged_batch(seed, **shape)
    return [jnp.asarray(data[name]) for name in ("correct", "entropy", "mask")]


def test_gtpo_by_hand():
    """One right rollout of entropies 1, 2 beside a right one of 3; one wrong of 1, beside a wrong of 0.5."""
    correct = jnp.array([1.0, 1.0, 0.0, 0.0])
    entropy = jnp.array([[1.0, 2.0], [3.0, jnp.nan], [1.0, jnp.nan], [0.5, jnp.nan]])
    mask = jnp.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    rewards = [
        1 + 0.1 * 2 * 1 / 4,  # t = 1: two right rollouts alive, entropies 1 and 3
        1 + 0.1 * 1 * 2 / 2,  # t = 2: alone
        1 + 0.1 * 2 * 3 / 4,
        -1 - 0.1 * 2 * 1 / 3,  # inverse entropies 1 and 2
        -1 - 0.1 * 2 * 2 / 3,
    ]
    z = (np.array(rewards) - np.mean(rewards)) / np.std(rewards, ddof=1)
    expected = [[z[0], z[1]], [z[2], 0], [z[3], 0], [z[4], 0]]
    np.testing.assert_allclose(gtpo(correct, entropy, mask, 4), expected, rtol=1e-5)


def test_grpo_s_by_hand():
    # mean entropies 1.5 and 3 of the right, 1 and 0.5 of the wrong
    correct = jnp.array([1.0, 1.0, 0.0, 0.0])
    entropy = jnp.array([[1.0, 2.0], [3.0, jnp.nan], [1.0, jnp.nan], [0.5, jnp.nan]])
    mask = jnp.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool)
    rewards = np.array([1 + 0.2 / 3, 1 + 0.4 / 3, -1 - 0.2 / 3, -1 - 0.4 / 3])
    expected = (rewards - rewards.mean()) / rewards.std(ddof=1)
    np.testing.assert_allclose(grpo_s(correct, entropy, mask, 4), expected, rtol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("method", "oracle"), BOTH)
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(method, oracle, separate, seed):
    data = inputs(seed)
    for alphas in ((1.0, 0.1), (0.5, 2.0)):
        result = method(*data, SIZE, *alphas, separate)
        expected = oracle(*map(np.asarray, data), SIZE, *alphas, separate)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "oracle"), BOTH)
def test_entropies_of_zero_are_floored(method, oracle):
    correct, entropy, mask = inputs(1)
    entropy = entropy.at[:, ::2].set(0.0).at[5].set(0.0)
    result = method(correct, entropy, mask, SIZE)
    expected = oracle(*map(np.asarray, (correct, entropy, mask)), SIZE)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_groups_advantages_sum_to_zero_and_have_unit_spread(method, separate):
    correct, entropy, mask = inputs(2)
    correct = jnp.array([1.0, 1.0, 0.0, 0.0] * 3)
    result = np.asarray(method(correct, entropy, mask, SIZE, 1.0, 0.1, separate))
    keep = np.asarray(mask) if result.ndim == 2 else np.asarray(mask).any(axis=1)
    for group in oracles.groups(12, SIZE):
        values = result[group][keep[group]]
        np.testing.assert_allclose(values.sum(), 0.0, atol=1e-4)
        if not separate:
            np.testing.assert_allclose(values.var(ddof=1), 1.0, rtol=1e-4)
    np.testing.assert_array_equal(result[~keep], 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_separate_cancels_the_outcome(method):
    """z-scores per outcome do not depend on α1 (nor on the size of α2); one z-score over all does."""
    data = inputs(3)
    apart = [method(*data, SIZE, *alphas, True) for alphas in ((1.0, 0.1), (0.0, 0.1), (0.0, 1.0))]
    for other in apart[1:]:
        np.testing.assert_allclose(other, apart[0], atol=2e-4)
    together = [method(*data, SIZE, alpha1, 0.1) for alpha1 in (1.0, 0.0)]
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_without_the_entropy_term_gtpo_is_grpo_over_tokens():
    """α2 = 0: a z-score of ±1 over the group's tokens."""
    correct, entropy, mask = map(np.asarray, inputs(4))
    result = gtpo(*map(jnp.asarray, (correct, entropy, mask)), SIZE, 1.0, 0.0)
    for group in oracles.groups(12, SIZE):
        keep = mask[group]
        outcome = np.broadcast_to(2.0 * correct[group, None] - 1, keep.shape)[keep]
        expected = np.array(oracles.z_scores(list(outcome)))
        np.testing.assert_allclose(np.asarray(result)[group][keep], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_uncertain_right_tokens_earn_more_and_confident_wrong_ones_lose_more(method):
    entropy, mask = jnp.array([[2.0], [1.0], [2.0], [1.0]]), jnp.ones((4, 1), bool)
    result = method(jnp.array([1.0, 1.0, 0.0, 0.0]), entropy, mask, 4).reshape(-1)
    assert result[0] > result[1] > 0 > result[2] > result[3]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equal_rewards_give_exactly_zero(method, separate):
    """Outcomes and entropies all equal; a group of one; no tokens at all."""
    _, entropy, mask = inputs()
    for outcome in (0.0, 1.0):
        correct = jnp.full(12, outcome)
        flat = method(correct, jnp.full_like(entropy, 0.7), mask, SIZE, 1.0, 0.1, separate)
        np.testing.assert_array_equal(flat, np.zeros_like(flat))
        alone = method(correct, entropy, mask, 1, 1.0, 0.1, separate)
        np.testing.assert_array_equal(alone, np.zeros_like(alone))
        empty = method(correct, entropy, jnp.zeros_like(mask), SIZE, 1.0, 0.1, separate)
        np.testing.assert_array_equal(empty, np.zeros_like(empty))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, -1.0, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_what_the_mask_hides_changes_nothing(method, garbage):
    correct, entropy, mask = inputs()
    clean, dirty = (jnp.where(mask, entropy, value) for value in (0.0, garbage))
    np.testing.assert_array_equal(
        method(correct, dirty, mask, SIZE), method(correct, clean, mask, SIZE)
    )


@pytest.mark.parametrize("method", METHODS)
def test_permuting_a_group_permutes_its_advantages_and_groups_stay_apart(method):
    data = inputs()
    straight = np.asarray(method(*data, SIZE))
    order = np.array([2, 0, 3, 1, *range(4, 12)])
    np.testing.assert_allclose(method(*(x[order] for x in data), SIZE), straight[order], atol=2e-5)
    other = [x.at[4:].set(x[4:][::-1]) for x in data]
    np.testing.assert_array_equal(method(*other, SIZE)[:4], straight[:4])


def test_entropy_weights_by_hand():
    # mean entropies 1.5 and 0.5, their mean 1; the row without tokens counts nowhere
    entropy = jnp.array([[1.0, 2.0], [0.5, jnp.nan], [jnp.nan, jnp.inf]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    np.testing.assert_allclose(entropy_weights(entropy, mask), [1.5, 0.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_weights_against_loops_and_their_mean_is_one(seed):
    _, entropy, mask = inputs(seed)
    weights = entropy_weights(entropy, mask)
    np.testing.assert_allclose(weights, oracles.entropy_weights(entropy, mask), rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(weights)[np.asarray(mask).any(axis=1)].mean(), 1.0, rtol=1e-5
    )


def test_entropy_weights_of_a_certain_policy_are_one():
    mask = inputs()[2]
    weights = np.asarray(entropy_weights(jnp.zeros(mask.shape), mask))
    np.testing.assert_array_equal(weights, np.asarray(mask).any(axis=1).astype(float))
    # no tokens at all: nothing is finite by luck
    assert np.isfinite(entropy_weights(jnp.zeros(mask.shape), jnp.zeros_like(mask))).all()
