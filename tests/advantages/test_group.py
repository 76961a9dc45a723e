import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.group import (
    PRESETS,
    group_advantages,
    group_stats,
    leave_one_out_advantages,
    resolve_std_floor,
    zscore,
)
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")


@pytest.mark.parametrize(
    ("preset", "sigma_plus_eps"),
    [
        # rewards 1, 0, 0, 0: mean 1/4, squares 9/16 + 3·1/16 = 3/4
        ("verl", 0.5 + 1e-6),  # √(3/4 / 3) = 1/2
        ("trl", 0.5 + 1e-4),
        ("dr_grpo_repo", 0.5 + 1e-8),
        ("numpy", 0.4330127 + 1e-8),  # √(3/4 / 4)
    ],
)
def test_presets_by_hand(preset, sigma_plus_eps):
    ddof, eps = PRESETS[preset]
    advantages = group_advantages(jnp.array([1.0, 0.0, 0.0, 0.0]), 4, ddof=ddof, eps=eps)
    expected = np.array([0.75, -0.25, -0.25, -0.25]) / sigma_plus_eps
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)


def test_the_default_is_verl():
    reward = jnp.array([1.0, 0.0, 0.0, 0.5])
    ddof, eps = PRESETS["verl"]
    np.testing.assert_array_equal(
        group_advantages(reward, 4), group_advantages(reward, 4, ddof=ddof, eps=eps)
    )


def test_eps_shows_where_the_spread_is_small():
    # rewards 0, 2e-4: mean 1e-4, σ = √(2·1e-8) = 1.41421e-4; trl: 1e-4 / 2.41421e-4
    ddof, eps = PRESETS["trl"]
    advantages = group_advantages(jnp.array([0.0, 2e-4]), 2, ddof=ddof, eps=eps)
    np.testing.assert_allclose(advantages, [-0.414214, 0.414214], rtol=1e-5)


def test_groups_are_adjacent_rows():
    advantages = group_advantages(jnp.array([1.0, 0.0, 3.0, 7.0]), 2, eps=0.0)
    # σ of two values a apart is a/√2, so each is ±1/√2
    r = 0.5**0.5
    np.testing.assert_allclose(advantages, [r, -r, -r, r], rtol=1e-6)


def test_scale_none_is_dr_grpo():
    advantages = group_advantages(jnp.array([1.0, 0.0, 0.0, 3.0]), 4, scale="none")
    np.testing.assert_array_equal(advantages, [0.0, -1.0, -1.0, 2.0])


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 100.3, -7.7, 1e6])
def test_equal_rewards_give_exactly_zero(value, scale):
    # in float32 seven times 100.3 has a standard deviation of 8e-6
    advantages = group_advantages(jnp.full(7, value), 7, scale=scale, eps=0.0)
    np.testing.assert_array_equal(advantages, np.zeros(7))


def test_rounding_residue_is_floored():
    # one value a last bit higher: σ = 7.6e-6/√8 = 2.7e-6, under 1e-6·100.3
    reward = jnp.full(8, 100.3).at[3].set(np.nextafter(np.float32(100.3), np.float32(200)))
    stats = group_stats(reward[None])
    assert 0 < stats.std[0, 0] < 1e-5
    assert stats.flat[0, 0]
    np.testing.assert_array_equal(group_advantages(reward, 8), np.zeros(8))
    np.testing.assert_array_equal(group_advantages(reward, 8, scale="none"), np.zeros(8))


def test_a_spread_over_the_residue_is_kept():
    # σ = 2e-6/√2 = 1.4e-6, over 1e-6·max(1, 2e-6)
    advantages = group_advantages(jnp.array([0.0, 2e-6]), 2, eps=0.0)
    np.testing.assert_allclose(advantages, [-(0.5**0.5), 0.5**0.5], rtol=1e-5)


def test_seven_equal_rewards_and_another():
    # mean 0.1, squares 7·0.01 + 0.49 = 0.56, σ = √0.08
    reward = jnp.array([100.3] * 7 + [101.1])
    expected = np.array([-0.1] * 7 + [0.7]) / 0.08**0.5
    np.testing.assert_allclose(group_advantages(reward, 8), expected, atol=1e-3)


def test_a_group_of_one_gives_zero():
    for scale in ("std", "none"):
        for ddof in (0, 1):
            advantages = group_advantages(jnp.array([0.0, 5.0]), 1, scale=scale, ddof=ddof)
            np.testing.assert_array_equal(advantages, [0.0, 0.0])


def test_a_flat_group_stays_zero_under_a_floor():
    for floor in (0.0, 0.5, "outcome"):
        advantages = group_advantages(jnp.full(4, 100.3), 4, std_floor=floor)
        np.testing.assert_array_equal(advantages, np.zeros(4))


@pytest.mark.parametrize("correct", [1, 3, 7])
def test_outcome_floor_leaves_mixed_binary_groups_as_they_are(correct):
    reward = jnp.array([1.0] * correct + [0.0] * (8 - correct))
    np.testing.assert_allclose(
        group_advantages(reward, 8, std_floor="outcome"), group_advantages(reward, 8), rtol=1e-6
    )


def test_outcome_floor_scales_groups_whose_outcomes_agree():
    # all right, dense terms ±0.1: σ = √(4·0.01/3) = 0.11547 < 1/√4 = 0.5, so ±0.1/0.5
    reward = jnp.array([1.1, 0.9, 1.1, 0.9])
    floored = group_advantages(reward, 4, std_floor="outcome")
    np.testing.assert_allclose(floored, [0.2, -0.2, 0.2, -0.2], rtol=1e-5)
    # a tenth of the dense terms learns a tenth as strongly; without the floor just as strongly
    tenth = jnp.array([1.01, 0.99, 1.01, 0.99])
    np.testing.assert_allclose(
        group_advantages(tenth, 4, std_floor="outcome"), floored / 10, rtol=1e-4
    )
    np.testing.assert_allclose(group_advantages(tenth, 4), group_advantages(reward, 4), rtol=1e-4)


def test_std_floor_by_number():
    # σ = 1/√2·0.2 = 0.1414 < 0.4
    advantages = group_advantages(jnp.array([0.2, 0.0]), 2, std_floor=0.4, eps=0.0)
    np.testing.assert_allclose(advantages, [0.25, -0.25], rtol=1e-6)
    assert resolve_std_floor("outcome", 16) == 0.25
    # one of four right, ddof 0: variance 1/4·3/4
    assert resolve_std_floor("outcome", 4, ddof=0) == pytest.approx((3 / 16) ** 0.5)
    assert resolve_std_floor(0.3, 16) == 0.3


def test_std_floor_plays_no_part_without_scaling():
    reward = jnp.array([0.2, 0.0])
    np.testing.assert_array_equal(
        group_advantages(reward, 2, scale="none", std_floor="outcome"),
        group_advantages(reward, 2, scale="none"),
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_generations": 4, "scale": "batch"}, "batch"),
        ({"num_generations": 4}, "6 rewards"),
        ({"num_generations": 0}, "num_generations 0"),
        ({"num_generations": 3, "std_floor": "half"}, "half"),
        ({"num_generations": 3, "std_floor": -1.0}, "-1.0"),
        ({"num_generations": 3, "std_floor": float("nan")}, "nan"),
    ],
)
def test_what_is_refused_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        group_advantages(jnp.arange(6.0), **arguments)


@pytest.fixture
def rewards():
    return jax.random.normal(jax.random.key(0), (12, 8))


@pytest.mark.parametrize("scale", ["std", "none"])
def test_advantages_of_a_group_sum_to_zero(rewards, scale):
    advantages = group_advantages(rewards.reshape(-1), 8, scale=scale).reshape(12, 8)
    np.testing.assert_allclose(advantages.sum(axis=1), np.zeros(12), atol=1e-5)


def test_z_scores_have_unit_spread(rewards):
    advantages = np.asarray(group_advantages(rewards.reshape(-1), 8)).reshape(12, 8)
    np.testing.assert_allclose(advantages.std(axis=1, ddof=1), np.ones(12), rtol=1e-5)


def test_permuting_a_group_permutes_its_advantages(rewards):
    order = np.random.default_rng(0).permutation(8)
    straight = group_advantages(rewards.reshape(-1), 8).reshape(12, 8)
    permuted = group_advantages(rewards[:, order].reshape(-1), 8).reshape(12, 8)
    np.testing.assert_allclose(permuted, straight[:, order], atol=1e-6)


def test_groups_do_not_touch_each_other(rewards):
    other = rewards.at[1:].set(99.0)
    np.testing.assert_array_equal(
        group_advantages(rewards.reshape(-1), 8)[:8], group_advantages(other.reshape(-1), 8)[:8]
    )


def oracle(rewards, size, scale, ddof, eps, sigma_min):
    """Â by loops in float64."""
    out = []
    for start in range(0, len(rewards), size):
        group = [float(r) for r in rewards[start : start + size]]
        mean = sum(group) / size
        squares = sum((r - mean) ** 2 for r in group)
        sigma = (squares / (size - ddof)) ** 0.5 if size > ddof else 0.0
        if size == 1 or sigma < 1e-6 * max(1.0, max(abs(r) for r in group)):
            out += [0.0] * size
        elif scale == "none":
            out += [r - mean for r in group]
        else:
            out += [(r - mean) / (max(sigma, sigma_min) + eps) for r in group]
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_against_loops(size, scale, preset):
    rng = np.random.default_rng(size)
    rewards = np.concatenate(
        [rng.normal(size=4 * size), rng.integers(0, 2, 4 * size), np.full(size, 100.3)]
    ).astype(np.float32)
    ddof, eps = PRESETS[preset]
    # one right rollout among G: squares sum to (1 − 1/G)² + (G − 1)/G² = 1 − 1/G
    lopsided = ((1 - 1 / size) / max(size - ddof, 1)) ** 0.5
    for floor, sigma_min in ((0.0, 0.0), (0.7, 0.7), ("outcome", lopsided)):
        np.testing.assert_allclose(
            group_advantages(jnp.asarray(rewards), size, scale, ddof, eps, floor),
            oracle(rewards, size, scale, ddof, eps, sigma_min),
            rtol=1e-4,
            atol=1e-5,
        )


def test_trl():
    """TRL's lines: (rewards − mean) / (std + 1e-4), torch's std with ddof 1."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(5, 8)).astype(np.float32)
    expected = (rewards - rewards.mean(axis=1, keepdims=True)) / (
        rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4
    )
    ddof, eps = PRESETS["trl"]
    advantages = group_advantages(jnp.asarray(rewards.reshape(-1)), 8, ddof=ddof, eps=eps)
    np.testing.assert_allclose(advantages, expected.reshape(-1), rtol=1e-5, atol=1e-6)


def test_leave_one_out_by_hand():
    # rewards 1, 0, 0, 3: the others' means are 1, 4/3, 4/3, 1/3
    advantages = leave_one_out_advantages(jnp.array([1.0, 0.0, 0.0, 3.0]), 4)
    np.testing.assert_allclose(advantages, [0.0, -4 / 3, -4 / 3, 8 / 3], atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_leave_one_out_is_the_centred_reward_widened(size):
    reward = jax.random.normal(jax.random.key(1), (6 * size,))
    advantages = leave_one_out_advantages(reward, size)
    np.testing.assert_allclose(advantages, oracles.leave_one_out(reward, size), atol=1e-6)
    centred = group_advantages(reward, size, scale="none")
    np.testing.assert_allclose(advantages, centred * size / (size - 1), rtol=1e-6)
    np.testing.assert_allclose(advantages.reshape(-1, size).sum(1), np.zeros(6), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 100.3, -7.7])
def test_leave_one_out_of_flat_groups_and_groups_of_one_is_exactly_zero(value):
    np.testing.assert_array_equal(leave_one_out_advantages(jnp.full(7, value), 7), np.zeros(7))
    np.testing.assert_array_equal(leave_one_out_advantages(jnp.full(3, value), 1), np.zeros(3))


def test_leave_one_out_permutes_and_refuses_ragged_batches(rewards):
    order = np.random.default_rng(0).permutation(8)
    straight = leave_one_out_advantages(rewards.reshape(-1), 8).reshape(12, 8)
    permuted = leave_one_out_advantages(rewards[:, order].reshape(-1), 8).reshape(12, 8)
    np.testing.assert_allclose(permuted, straight[:, order], atol=1e-6)
    with pytest.raises(ValueError, match="6 rewards"):
        leave_one_out_advantages(jnp.arange(6.0), 4)


def test_zscore_of_rows_by_hand():
    # 1, 3 (and garbage): mean 2, σ = √2; equal values, one value and no value: 0
    nan = jnp.nan
    x = jnp.array([[1.0, 3.0, nan], [100.3, 100.3, 100.3], [5.0, jnp.inf, nan], [nan, nan, nan]])
    valid = jnp.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    expected = np.zeros((4, 3))
    expected[0, :2] = -(0.5**0.5), 0.5**0.5
    np.testing.assert_allclose(zscore(x, valid), expected, rtol=1e-6)
    np.testing.assert_array_equal(zscore(x, valid)[1:], expected[1:])
