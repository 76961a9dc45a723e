import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.objectives.divergence import ESTIMATORS, estimate, in_loss, in_reward

pytestmark = pytest.mark.usefixtures("strict_jax")


def test_by_hand():
    # d = log π_0 − log π = 0.5, −1, 0
    logp, logp_ref = jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[-0.5, -2.0, -1.0]])
    np.testing.assert_allclose(estimate("k1", logp, logp_ref), [[-0.5, 1.0, 0.0]])
    np.testing.assert_allclose(estimate("k2", logp, logp_ref), [[0.125, 0.5, 0.0]])
    # e^0.5 − 1.5 = 0.148721, e^−1 − 0 = 0.367879
    np.testing.assert_allclose(
        estimate("k3", logp, logp_ref), [[0.148721, 0.367879, 0.0]], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [-20.0, 20.0]), ("k2", [200.0, 200.0]), ("k3", [math.exp(20) - 21, 19.0])],
)
def test_d_is_clamped_and_then_has_no_gradient(estimator, expected):
    logp, logp_ref = jnp.array([[-50.0, -1.0]]), jnp.array([[-1.0, -50.0]])
    np.testing.assert_allclose(estimate(estimator, logp, logp_ref)[0], expected, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(estimate(estimator, x, logp_ref)))(logp)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])


def test_k3_is_exact_and_never_negative_near_zero():
    d = np.concatenate([-np.geomspace(1e-6, 1e-1, 500), np.geomspace(1e-6, 1e-1, 500)])
    d = d.astype(np.float32)
    k3 = np.asarray(estimate("k3", jnp.zeros((1, 1000)), jnp.asarray(d)[None]))[0]
    assert k3.min() >= 0.0
    true = np.expm1(d.astype(np.float64)) - d
    # exp(d) − d − 1 in float32 is off by up to 1.2e-7, more than the whole value at d = 1e-4
    np.testing.assert_allclose(k3, true, rtol=1e-3, atol=1e-8)


def test_gradients():
    logp, logp_ref = jnp.array([[-1.0]]), jnp.array([[-0.5]])  # d = 0.5, dd/dlogp = −1
    gradient = lambda name: jax.grad(lambda x: estimate(name, x, logp_ref)[0, 0])(logp)  # noqa: E731
    np.testing.assert_allclose(gradient("k1"), [[1.0]])
    np.testing.assert_allclose(gradient("k2"), [[-0.5]])
    np.testing.assert_allclose(gradient("k3"), [[1 - math.exp(0.5)]], rtol=1e-6)


def test_expectations_over_the_policy():
    # π = (0.7, 0.3), π_0 = (0.4, 0.6): KL = 0.7·log(0.7/0.4) + 0.3·log(0.3/0.6) = 0.183786
    policy, ref = jnp.array([[0.7, 0.3]]), jnp.array([[0.4, 0.6]])
    mean = lambda name: jnp.sum(policy * estimate(name, jnp.log(policy), jnp.log(ref)))  # noqa: E731
    np.testing.assert_allclose(mean("k1"), 0.183786, rtol=1e-5)
    np.testing.assert_allclose(mean("k3"), 0.183786, rtol=1e-5)


def test_k1_is_refused_in_the_loss_and_unknown_ones_everywhere():
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="k1 in the loss"):
        in_loss("k1", x, x)
    with pytest.raises(ValueError, match="k4"):
        in_loss("k4", x, x)
    with pytest.raises(ValueError, match="k4"):
        estimate("k4", x, x)
    for name in set(ESTIMATORS) - {"k1"}:
        np.testing.assert_array_equal(in_loss(name, x, x), [[0.0]])


def test_in_reward_sums_over_a_response():
    # d = log π_0 − log π = 0.5, −1; one token with d = 0.5; no token
    nan = jnp.nan
    logp = jnp.array([[-1.0, -1.0, nan], [-1.0, nan, jnp.inf], [nan, nan, nan]])
    ref = jnp.array([[-0.5, -2.0, jnp.inf], [-0.5, nan, jnp.inf], [nan, nan, -jnp.inf]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    for name, expected in {
        "k1": [-0.5 + 1.0, -0.5, 0.0],
        "k2": [0.125 + 0.5, 0.125, 0.0],
        "k3": [0.148721 + 0.367879, 0.148721, 0.0],
    }.items():
        np.testing.assert_allclose(in_reward(name, logp, ref, mask), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="k4"):
        in_reward("k4", logp, ref, mask)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_in_reward_is_the_masked_sum_and_zero_against_itself(estimator):
    rng = np.random.default_rng(0)
    logp, ref = (jnp.asarray(rng.normal(size=(5, 7)).astype(np.float32)) for _ in range(2))
    mask = jnp.asarray(np.arange(7) < rng.integers(0, 8, 5)[:, None])
    expected = np.where(mask, estimate(estimator, logp, ref), 0.0).sum(axis=1)
    np.testing.assert_allclose(in_reward(estimator, logp, ref, mask), expected, rtol=1e-5)
    np.testing.assert_array_equal(in_reward(estimator, logp, logp, mask), np.zeros(5))
