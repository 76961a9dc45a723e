import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.confidence import low_probability_confidence, progrpo_advantages
from jaxrl_reason.advantages.group import group_advantages
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")


def test_confidence_by_hand():
    # ⌈0.2·6⌉ = 2 lowest of six: −3 and −2; of one token: itself; of none: 0
    nan = jnp.nan
    logp = jnp.array([[-1.0, -3.0, -0.5, -2.0, -0.1, -0.2], [-0.7] + [nan] * 5, [nan] * 6])
    mask = jnp.array([[1] * 6, [1] + [0] * 5, [0] * 6], bool)
    expected = [math.exp(-2.5), math.exp(-0.7), 0.0]
    np.testing.assert_allclose(low_probability_confidence(logp, mask), expected, rtol=1e-6)


@pytest.mark.parametrize(("tokens", "chosen"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (35, 7)])
def test_the_lowest_fifth_is_rounded_up_in_integers(tokens, chosen):
    """log-probs −1, −2, … −n: the lowest are the last `chosen`, of mean −(2n − chosen + 1)/2."""
    logp = -jnp.arange(1, 41, dtype=jnp.float32)[None] / 40
    confidence = low_probability_confidence(logp, jnp.arange(40)[None] < tokens)
    np.testing.assert_allclose(confidence, [math.exp(-(2 * tokens - chosen + 1) / 80)], rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0, 0.01])
def test_confidence_against_loops(fraction):
    for seed in range(3):
        data = oracles.ragged_batch(seed, length=23)
        expected = oracles.low_probability_confidence(data["logp"], data["mask"], fraction)
        logp, mask = jnp.asarray(data["logp"]), jnp.asarray(data["mask"])
        result = jax.jit(low_probability_confidence, static_argnums=2)(logp, mask, fraction)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, -1e30])
def test_what_the_mask_hides_changes_nothing(garbage):
    data = oracles.ragged_batch(0)
    logp, mask = jnp.asarray(data["logp"]), jnp.asarray(data["mask"])
    clean, dirty = (jnp.where(mask, logp, value) for value in (0.0, garbage))
    np.testing.assert_array_equal(
        low_probability_confidence(dirty, mask), low_probability_confidence(clean, mask)
    )


def test_progrpo_by_hand():
    # first group solved: + 0.3·(c(q) − c(o)); second all wrong: as it was
    advantages = jnp.array([1.0, -1.0, 0.5, -0.5])
    result = progrpo_advantages(
        advantages, jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([0.6, 0.6, 0.9, 0.9]),
        jnp.array([0.4, 0.8, 0.1, 0.2]), 2,
    )  # fmt: skip
    np.testing.assert_allclose(result, [1 + 0.3 * 0.2, -1 - 0.3 * 0.2, 0.5, -0.5], rtol=1e-6)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    reward = jnp.asarray(rng.integers(0, 2, 12).astype(np.float32)).at[4:8].set(0.0)
    prompt = np.repeat(rng.random(3), 4).astype(np.float32)
    own = rng.random(12).astype(np.float32)
    return [group_advantages(reward, 4), reward, jnp.asarray(prompt), jnp.asarray(own)]


@pytest.mark.parametrize("alpha", [0.3, 1.5])
def test_progrpo_against_loops(alpha):
    for seed in range(3):
        expected = oracles.progrpo(*inputs(seed), 4, alpha)
        np.testing.assert_allclose(progrpo_advantages(*inputs(seed), 4, alpha), expected, rtol=1e-5)


def test_without_alpha_it_is_grpo():
    advantages, *rest = inputs()
    np.testing.assert_array_equal(progrpo_advantages(advantages, *rest, 4, 0.0), advantages)


def test_unsolved_groups_do_not_see_the_confidence():
    """All rewards 0, garbage included: exactly zero."""
    nan = jnp.full(12, jnp.nan)
    result = progrpo_advantages(jnp.zeros(12), jnp.zeros(12), nan, nan, 4)
    np.testing.assert_array_equal(result, np.zeros(12))


def test_all_right_groups_prefer_their_least_confident_answer():
    own = jnp.array([0.2, 0.4, 0.6, 0.8])
    result = progrpo_advantages(jnp.zeros(4), jnp.ones(4), jnp.full(4, 0.5), own, 4)
    np.testing.assert_allclose(result, [0.09, 0.03, -0.03, -0.09], rtol=1e-5)


def test_permuting_a_group_permutes_its_advantages_and_a_group_of_one():
    data = inputs()
    order = np.array([2, 0, 3, 1, *range(4, 12)])
    permuted = progrpo_advantages(*(x[order] for x in data), 4)
    np.testing.assert_array_equal(permuted, progrpo_advantages(*data, 4)[order])
    alone = progrpo_advantages(jnp.zeros(1), jnp.ones(1), jnp.array([0.5]), jnp.array([0.25]), 1)
    np.testing.assert_allclose(alone, [0.075], rtol=1e-6)
