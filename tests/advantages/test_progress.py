import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.progress import pacr_advantages
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")

SIZE, STEPS = 4, 5


@functools.cache
def compiled(settings):
    return jax.jit(lambda *data: pacr_advantages(*data, SIZE, **dict(settings)))


def pacr(*data, **settings):
    return compiled(tuple(settings.items()))(*data)


def inputs(seed=0):
    """Advantages, c_k, number of steps, step of each token and mask; one row with tokens has no steps."""
    data, rng = oracles.ragged_batch(seed), np.random.default_rng(seed + 100)
    lengths = data["mask"].sum(axis=1)
    num_steps = np.minimum(rng.integers(1, STEPS + 1, 12), lengths).astype(np.int32)
    num_steps[7] = 0
    place = np.arange(9)[None]
    step = place * num_steps[:, None] // np.maximum(lengths, 1)[:, None]
    step = np.clip(step, 0, np.maximum(num_steps - 1, 0)[:, None]).astype(np.int32)
    gold = -np.abs(rng.normal(size=(12, STEPS + 1))).astype(np.float32)
    return [jnp.asarray(x) for x in (data["reward"], gold, num_steps, step, data["mask"])]


def test_by_hand():
    """γ = 1, so G_k = c_n − c_{k−1}: (2, 1) for c = −3, −2, −1, and 4 for c = −4, 0."""
    gold = jnp.array([[-3.0, -2.0, -1.0], [-4.0, 0.0, jnp.nan]])
    steps = jnp.array([[0, 0, 1], [0, 0, 7]], jnp.int32)
    mask = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    result = pacr_advantages(
        jnp.array([1.0, -1.0]), gold, jnp.array([2, 1], jnp.int32), steps, mask, 2
    )
    # min-max of 2, 1, 4: 1/3, 0, 1, their mean 4/9; the mean is over steps, not over tokens
    first, second, other = 1 + 0.5 * (1 / 3 - 4 / 9), 1 + 0.5 * (0 - 4 / 9), -1 + 0.5 * (1 - 4 / 9)
    np.testing.assert_allclose(result, [[first, first, second], [other, other, 0.0]], rtol=1e-6)


def test_discount_by_hand():
    # gains 1, 2 and γ = 0.5: G = 1 + 1 = 2, 2: equal, so no progress; γ = 0: G = 1, 2
    gold, steps = jnp.array([[-3.0, -2.0, 0.0]]), jnp.array([[0, 1]], jnp.int32)
    call = lambda gamma: pacr_advantages(  # noqa: E731
        jnp.array([3.0]), gold, jnp.array([2], jnp.int32), steps, jnp.ones((1, 2), bool), 1, gamma
    )
    np.testing.assert_array_equal(call(0.5), [[3.0, 3.0]])
    np.testing.assert_allclose(call(0.0), [[3.0 - 0.25, 3.0 + 0.25]], rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings", [{}, {"gamma": 0.7, "outcome_weight": 0.3, "progress_weight": 2.0}]
)
def test_against_loops(seed, settings):
    data = inputs(seed)
    expected = oracles.pacr(*map(np.asarray, data), SIZE, **settings)
    np.testing.assert_allclose(pacr(*data, **settings), expected, rtol=1e-4, atol=1e-5)


def test_without_progress_it_is_the_weighted_outcome():
    advantages, *rest, mask = inputs()
    expected = np.where(mask, 0.3 * np.asarray(advantages)[:, None], 0.0)
    off = pacr(advantages, *rest, mask, outcome_weight=0.3, progress_weight=0.0)
    np.testing.assert_allclose(off, expected, rtol=1e-6)
    # equal gains everywhere at γ = 0: every G is the same
    gold = jnp.broadcast_to(jnp.arange(-STEPS, 1, dtype=jnp.float32), (12, STEPS + 1)) * 0.5
    flat = pacr(advantages, gold, *rest[1:], mask, gamma=0.0, outcome_weight=0.3)
    np.testing.assert_array_equal(flat, off)


def test_equal_outcomes_and_gains_give_exactly_zero():
    _, _, *rest = inputs()
    gold = jnp.full((12, STEPS + 1), -100.3)
    np.testing.assert_array_equal(pacr(jnp.zeros(12), gold, *rest), np.zeros((12, 9)))


def test_progress_sums_to_zero_over_the_steps_of_a_group():
    _, gold, *_ = inputs()
    # every row has all its steps, each of one token: the sum over tokens is one over steps
    num_steps = jnp.full(12, STEPS, jnp.int32)
    step = jnp.broadcast_to(jnp.arange(STEPS, dtype=jnp.int32), (12, STEPS))
    result = pacr(jnp.zeros(12), gold, num_steps, step, jnp.ones((12, STEPS), bool))
    per_group = np.asarray(result).reshape(3, -1)
    np.testing.assert_allclose(per_group.sum(axis=1), np.zeros(3), atol=1e-5)
    # min-max: the spread is λ_P
    np.testing.assert_allclose(np.ptp(per_group, axis=1), np.full(3, 0.5), rtol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_no_step_reaches_changes_nothing(garbage):
    advantages, gold, num_steps, step, mask = inputs()
    beyond = np.arange(STEPS + 1)[None] > np.asarray(num_steps)[:, None]
    empty = ~np.asarray(mask).any(axis=1)[:, None]
    clean, dirty = (jnp.where(beyond | empty, value, gold) for value in (0.0, garbage))
    hidden = jnp.where(mask, step, 2**20).astype(jnp.int32)
    np.testing.assert_array_equal(
        pacr(advantages, dirty, num_steps, hidden, mask),
        pacr(advantages, clean, num_steps, step, mask),
    )


def test_permuting_a_group_permutes_its_advantages_and_groups_stay_apart():
    data = inputs()
    straight = np.asarray(pacr(*data))
    order = np.array([2, 0, 3, 1, *range(4, 12)])
    np.testing.assert_allclose(pacr(*(x[order] for x in data)), straight[order], atol=1e-5)
    other = [x.at[4:].set(x[4:][::-1]) for x in data]
    np.testing.assert_array_equal(pacr(*other)[:4], straight[:4])


def test_no_tokens_and_no_steps():
    advantages, gold, num_steps, step, mask = inputs()
    none = jnp.zeros_like(num_steps)
    np.testing.assert_array_equal(
        pacr(advantages, gold, num_steps, step, jnp.zeros_like(mask)), np.zeros((12, 9))
    )
    outcome = np.where(mask, np.asarray(advantages)[:, None], 0.0)
    np.testing.assert_array_equal(pacr(advantages, gold, none, step, mask), outcome)
