import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.objectives.likelihood import nll_loss
from jaxrl_reason.objectives.surrogate import loss_weights

pytestmark = pytest.mark.usefixtures("strict_jax")

LOGP = jnp.array([[-1.0, -2.0, jnp.nan], [-6.0, -jnp.inf, jnp.nan], [jnp.nan] * 3])
MASK = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


def test_mean_over_all_tokens():
    loss, metrics = nll_loss(LOGP, MASK, loss_weights(MASK, "token_mean"))
    np.testing.assert_allclose(loss, 3.0, rtol=1e-6)  # (1 + 2 + 6) / 3
    assert metrics == {"nll": (9.0, 3.0)}


def test_gradient_is_minus_the_weight_and_zero_under_the_mask():
    weights = loss_weights(MASK, "token_mean")
    gradient = jax.grad(lambda logp: nll_loss(logp, MASK, weights)[0])(LOGP)
    np.testing.assert_allclose(gradient, [[-1 / 3, -1 / 3, 0], [-1 / 3, 0, 0], [0, 0, 0]])


def test_micro_batches_add_up():
    weights = loss_weights(MASK, "token_mean")
    whole, _ = nll_loss(LOGP, MASK, weights)
    parts = [nll_loss(LOGP[i : i + 1], MASK[i : i + 1], weights[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole, rtol=1e-6)
    assert sum(m["nll"][0] for _, m in parts) == 9.0
    assert sum(m["nll"][1] for _, m in parts) == 3.0
