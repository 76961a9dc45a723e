import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.erpo import erpo_advantages, position_buckets
from jaxrl_reason.advantages.group import group_advantages
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")

SIZE = 4


def erpo(*inputs_and_size, **settings):
    *data, size = inputs_and_size
    return compiled(size, tuple(settings.items()))(*data)


@functools.cache
def compiled(size, settings):
    return jax.jit(lambda *data: erpo_advantages(*data, size, **dict(settings)))


def inputs(seed=0, **shape):
    data = oracles.ragged_batch(seed, **shape)
    advantages = group_advantages(jnp.asarray(data["reward"]), shape.get("size", SIZE))
    names = ("entropy", "logp", "logp_ref", "mask")
    return [advantages, *(jnp.asarray(data[name]) for name in names)]


@pytest.mark.parametrize(
    ("length", "num_buckets", "expected"),
    [
        # ⌊t·K/n⌋ for t = 1 … n, the last clamped from K to K − 1
        (10, 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]),
        (4, 10, [2, 5, 7, 9]),
        (1, 10, [9]),
        (7, 3, [0, 0, 1, 1, 2, 2, 2]),
        (5, 1, [0, 0, 0, 0, 0]),
        # in float32 29·(100/29) can be 99.99999: integers
        (29, 100, [t * 100 // 29 for t in range(1, 29)] + [99]),
    ],
)
def test_buckets_by_relative_position(length, num_buckets, expected):
    mask = jnp.arange(length + 3)[None] < length
    buckets = position_buckets(mask, num_buckets)
    np.testing.assert_array_equal(buckets[0], expected + [0, 0, 0])


def test_buckets_of_every_length():
    mask = jnp.arange(64)[None] < jnp.arange(65)[:, None]
    buckets = np.asarray(position_buckets(mask, 10))
    for n in range(65):
        expected = [oracles.bucket(t, n, 10) for t in range(1, n + 1)] + [0] * (64 - n)
        np.testing.assert_array_equal(buckets[n], expected)
        assert n == 0 or buckets[n, n - 1] == 9
    assert np.all(buckets[0] == 0)


def test_by_hand():
    """Two rollouts of one token each, both in the last bucket; equal entropies, so W = 1/2.

    s = 0.1·0.02 = 0.002 and 0: mean 0.001, σ = 0.002/√2 = 0.00141421, s̃ = ±0.001/(σ + 1e-4) = ±0.660422.
    Â = (1, −1), so Ψ = 0.5·(0.660422, 0.660422): σ 0, so /(0 + 1e-4): Ψ = 3302.11 twice.
    1 + 0.2·Ψ, −1 + 0.2·Ψ are 2 apart again: z-scores ±1/√2.
    """
    column = lambda *x: jnp.array(x, jnp.float32)[:, None]  # noqa: E731
    result = erpo_advantages(
        jnp.array([1.0, -1.0]), column(0.7, 0.7), column(-1.0, -1.0), column(-1.02, -1.0),
        jnp.ones((2, 1), bool), 2,
    )  # fmt: skip
    np.testing.assert_allclose(result, column(0.5**0.5, -(0.5**0.5)), rtol=1e-3)


def test_by_hand_with_a_gate():
    """Two rollouts of two tokens, K = 1, Â = (1, −1): the gate, one bucket, the rescaling, the z-score."""
    entropy = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    gap = jnp.array([[1.0, 3.0], [2.0, 2.0]])  # log π − log π_0; s is a tenth of it
    # H: mean 0.5, σ = √(4·0.25/3) = 0.577350; (0.5/(σ + δ))·5 = ±4.329378
    low, high = (1 / (1 + math.exp(5 * h / (math.sqrt(1 / 3) + 1e-4))) for h in (0.5, -0.5))
    # s: mean 0.2, σ = √(2·0.01/3) = 0.0816497; s̃ = (−, +)·0.1/(σ + δ), 0, 0
    step = 0.1 / (math.sqrt(0.02 / 3) + 1e-4)
    psi = np.array([-low * step, high * step, 0.0, 0.0])
    psi /= psi.std(ddof=1) + 1e-4
    x = np.array([1.0, 1.0, -1.0, -1.0]) + 0.2 * psi
    expected = ((x - x.mean()) / x.std(ddof=1)).reshape(2, 2)
    result = erpo_advantages(
        jnp.array([1.0, -1.0]), entropy, gap - 5.0, jnp.full((2, 2), -5.0),
        jnp.ones((2, 2), bool), 2, num_buckets=1,
    )  # fmt: skip
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_buckets": 3, "eta": 1.5, "gamma": 1.0},
        {"sigma_target": 2.0, "beta_progress": 1.0, "delta": 1e-2},
    ],
)
def test_against_loops(seed, settings):
    data = inputs(seed)
    expected = oracles.erpo(*map(np.asarray, data), SIZE, **settings)
    np.testing.assert_allclose(erpo(*data, SIZE, **settings), expected, rtol=2e-4, atol=2e-5)


def test_rollouts_without_an_advantage_are_not_active():
    """Their Ψ is 0 and out of the std that Ψ is rescaled by; one active token alone gives Ψ = 0."""
    advantages, entropy, logp, logp_ref, mask = inputs(1)
    advantages = jnp.array([1.0, 0.0, 0.0, -1.0] + [2.0, 0.0, 0.0, 0.0] + [0.0, 0.5, 1e-9, -0.5])
    # second group: the row with an advantage has one token
    mask = mask.at[4].set(jnp.arange(9) < 1).at[5:8].set(jnp.arange(9)[None] < 6)
    data = advantages, entropy, logp, logp_ref, mask
    result = erpo(*data, SIZE)
    np.testing.assert_allclose(
        result, oracles.erpo(*map(np.asarray, data), SIZE), rtol=2e-4, atol=2e-5
    )
    np.testing.assert_array_equal(result[4:8], erpo(*data[:3], logp, mask, SIZE)[4:8])


@pytest.mark.parametrize("seed", range(3))
def test_tokens_of_a_group_have_sum_zero_and_variance_one(seed):
    """Eq. 16."""
    data = inputs(seed, length=40)
    result, mask = np.asarray(erpo(*data, SIZE)), np.asarray(data[-1])
    for group in oracles.groups(len(result), SIZE):
        values = result[group][mask[group]]
        np.testing.assert_allclose(values.sum(), 0.0, atol=1e-4)
        np.testing.assert_allclose(values.var(ddof=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(result[~mask], 0.0)


@pytest.mark.parametrize("settings", [{}, {"eta": 0.0}])
def test_without_progress_it_is_the_group_advantage_normalised_over_tokens(settings):
    """At step 0 π = π_0, so Ψ = 0; with η = 0 Ψ does not matter."""
    advantages, entropy, logp, logp_ref, mask = inputs()
    reference = logp if not settings else logp_ref
    result = np.asarray(erpo(advantages, entropy, logp, reference, mask, SIZE, **settings))
    for group in oracles.groups(len(mask), SIZE):
        keep = np.asarray(mask)[group]
        base = np.broadcast_to(np.asarray(advantages)[group, None], keep.shape)[keep]
        expected = (base - base.mean()) / base.std(ddof=1)
        np.testing.assert_allclose(result[group][keep], expected, rtol=1e-4, atol=1e-5)


def test_groups_without_variance_are_exactly_zero():
    _, *signals = inputs()
    np.testing.assert_array_equal(erpo(jnp.zeros(12), *signals, SIZE), np.zeros((12, 9)))
    # |Â| ≤ 1e-9 counts as 0, or Ψ would blow it up to unit size
    np.testing.assert_array_equal(erpo(jnp.full(12, 1e-9), *signals, SIZE), np.zeros((12, 9)))
    assert np.abs(erpo(jnp.full(12, 1e-8), *signals, SIZE)).max() > 0.1


def test_flat_and_lonely_buckets_carry_no_progress():
    advantages, entropy, logp, logp_ref, mask = inputs()
    still = erpo(advantages, entropy, logp, logp, mask, SIZE)
    # rounding noise: s differs by 0.1·1e-5, so every σ_k is under 1e-5
    noise = 1e-5 * (jnp.arange(9) % 2).astype(jnp.float32)[None]
    np.testing.assert_array_equal(erpo(advantages, entropy, logp, logp + noise, mask, SIZE), still)
    # one rollout of five tokens per group in buckets 10, 20, 30, 40, 49: no peers, so Ψ = 0
    alone = (jnp.arange(9)[None] < 5) & (jnp.arange(12) % SIZE == 0)[:, None]
    result = erpo(advantages, entropy, logp, logp_ref, alone, SIZE, num_buckets=50)
    np.testing.assert_array_equal(result, np.zeros((12, 9)))


def test_progress_earns_where_right_and_costs_where_wrong():
    """In a right rollout a token with more progress than its peers stands higher, in a wrong one lower."""
    entropy, logp_ref = jnp.full((4, 1), 0.5), jnp.full((4, 1), -2.0)
    logp = logp_ref + jnp.array([1.0, 0.0, 1.0, 0.0])[:, None]
    result = erpo(
        jnp.array([1.0, 1.0, -1.0, -1.0]), entropy, logp, logp_ref, jnp.ones((4, 1), bool), SIZE
    )[:, 0]
    assert result[0] > result[1] and result[2] < result[3]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_the_mask_hides_changes_nothing(garbage):
    advantages, *signals, mask = inputs()
    fill = lambda value: [jnp.where(mask, x, value) for x in signals]  # noqa: E731
    clean = erpo(advantages, *fill(0.0), mask, SIZE)
    np.testing.assert_array_equal(erpo(advantages, *fill(garbage), mask, SIZE), clean)


def test_permuting_a_group_permutes_its_advantages_and_groups_stay_apart():
    data = inputs()
    straight = np.asarray(erpo(*data, SIZE))
    order = np.array([2, 0, 3, 1, *range(4, 12)])
    permuted = erpo(*(x[order] for x in data), SIZE)
    np.testing.assert_allclose(permuted, straight[order], atol=2e-5)
    other = [x.at[4:].set(x[4:][::-1]) for x in data]
    np.testing.assert_array_equal(erpo(*other, SIZE)[:4], straight[:4])


def test_a_group_of_one_and_an_empty_batch_are_zero():
    advantages, *signals = inputs(prompts=12, size=1)
    np.testing.assert_array_equal(advantages, np.zeros(12))
    np.testing.assert_array_equal(erpo(advantages, *signals, 1), np.zeros((12, 9)))
    *some, mask = inputs()
    np.testing.assert_array_equal(erpo(*some, jnp.zeros_like(mask), SIZE), np.zeros((12, 9)))
