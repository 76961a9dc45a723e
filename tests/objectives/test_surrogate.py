import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.objectives.surrogate import LOSS_TYPES, loss_weights, policy_loss

pytestmark = pytest.mark.usefixtures("strict_jax")

NAN = jnp.nan
MASK = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # two sequences with tokens, of 3 and 1; the third row counts nowhere
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0], [0, 0, 0, 0]]),
        ("token_mean", [[1 / 4, 1 / 4, 1 / 4, 0], [1 / 4, 0, 0, 0], [0, 0, 0, 0]]),
        # 1/(2·8): the longest completion allowed, not the longest seen
        ("constant", [[1 / 16, 1 / 16, 1 / 16, 0], [1 / 16, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_loss_weights(loss_type, expected):
    for mask in (MASK, np.asarray(MASK)):
        np.testing.assert_allclose(loss_weights(mask, loss_type, 8), expected, rtol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_weights_of_an_empty_batch_are_zero(loss_type):
    weights = loss_weights(jnp.zeros((2, 3), bool), loss_type, 8)
    np.testing.assert_array_equal(weights, np.zeros((2, 3)))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_empty_rows_and_wider_padding_count_nowhere(loss_type):
    wide = jnp.pad(MASK, ((0, 0), (0, 5)))
    np.testing.assert_array_equal(
        loss_weights(wide, loss_type, 8)[:2, :4], loss_weights(MASK[:2], loss_type, 8)
    )


def test_unknown_loss_type_and_missing_length_are_named():
    with pytest.raises(ValueError, match="mean_of_means"):
        loss_weights(MASK, "mean_of_means")
    with pytest.raises(ValueError, match="max_completion_length"):
        loss_weights(MASK, "constant")


def one_token(ratio, advantage, **settings):
    """(loss, gradient in log π, metrics) of a single token with this ratio."""
    logp, ones = jnp.array([[math.log(ratio)]]), jnp.ones((1, 1), bool)
    loss = lambda x: policy_loss(x, jnp.zeros((1, 1)), jnp.array([advantage]), ones, **settings)  # noqa: E731
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
    return float(value), float(gradient[0, 0]), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "low", "high"),
    [
        # inside [0.8, 1.28]: −ρA, gradient −ρA
        (1.1, 2.0, -2.2, -2.2, 0, 0),
        (0.9, -2.0, 1.8, 1.8, 0, 0),
        # above: A > 0 is cut at 1.28·A and stops; A < 0 goes on
        (1.5, 2.0, -2.56, 0.0, 0, 1),
        (1.5, -2.0, 3.0, 3.0, 0, 0),
        # below: A < 0 is cut at 0.8·A and stops; A > 0 goes on
        (0.5, -2.0, 1.6, 0.0, 1, 0),
        (0.5, 2.0, -1.0, -1.0, 0, 0),
    ],
)
def test_clip_range_by_sign_of_the_advantage(ratio, advantage, loss, gradient, low, high):
    value, slope, metrics = one_token(ratio, advantage, epsilon=0.2, epsilon_high=0.28)
    np.testing.assert_allclose([value, slope], [loss, gradient], rtol=1e-6)
    assert metrics["clip_ratio/low_mean"] == (low, 1)
    assert metrics["clip_ratio/high_mean"] == (high, 1)
    assert metrics["clip_ratio/region_mean"] == (low + high, 1)
    np.testing.assert_allclose(metrics["policy/ratio_deviation/mean"][0], abs(ratio - 1), rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/ratio_deviation/max"], abs(ratio - 1), rtol=1e-6)


def test_epsilon_high_defaults_to_epsilon():
    assert one_token(1.25, 1.0, epsilon=0.2)[0] == pytest.approx(-1.2)
    assert one_token(1.25, 1.0, epsilon=0.2, epsilon_high=0.28)[0] == pytest.approx(-1.25)


def test_log_ratio_is_clamped():
    # A < 0 above the range is not clipped: only the clamp keeps exp(100) out
    value, slope, _ = one_token(math.exp(100), -1.0)
    np.testing.assert_allclose(value, math.exp(20), rtol=1e-5)
    assert slope == 0.0
    value, slope, _ = one_token(math.exp(-100), 1.0)
    np.testing.assert_allclose(value, -math.exp(-20), rtol=1e-5)
    assert slope == 0.0


def test_kl_term_by_hand():
    # log π = −1, log π_0 = −0.5: k3 = e^0.5 − 1.5, gradient 1 − e^0.5; surrogate −1, gradient −1
    ones, logp, ref = jnp.ones((1, 1), bool), jnp.array([[-1.0]]), jnp.array([[-0.5]])
    loss = lambda x: policy_loss(x, logp, jnp.array([1.0]), ones, beta=0.1, logp_ref=ref)  # noqa: E731
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
    np.testing.assert_allclose(value, -1 + 0.1 * 0.148721, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-1 + 0.1 * (1 - math.exp(0.5))]], rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], (0.148721, 1.0), rtol=1e-5)


def test_what_the_kl_term_refuses():
    x, ones = jnp.zeros((1, 1)), jnp.ones((1, 1), bool)
    with pytest.raises(ValueError, match="logp_ref"):
        policy_loss(x, x, jnp.zeros(1), ones, beta=0.1)
    with pytest.raises(ValueError, match="k1"):
        policy_loss(x, x, jnp.zeros(1), ones, beta=0.1, logp_ref=x, kl_estimator="k1")


def random_batch(seed=0, rows=6, length=9):
    """Log-probs near each other, advantages per token, ragged lengths with an empty row."""
    rng = np.random.default_rng(seed)
    draw = lambda scale: rng.normal(size=(rows, length)).astype(np.float32) * scale  # noqa: E731
    lengths = rng.integers(1, length + 1, rows)
    lengths[2] = 0
    mask = np.arange(length) < lengths[:, None]
    logp_old = draw(1.0) - 2
    return logp_old + draw(0.3), logp_old, draw(1.0), mask, logp_old + draw(0.5)


def loops(logp, logp_old, advantages, mask, logp_ref, loss_type, longest, low, high, beta):
    """The loss by loops in float64."""
    per_row = []
    for i in range(len(logp)):
        losses = []
        for t in range(len(logp[i])):
            if not mask[i][t]:
                continue
            ratio = math.exp(float(logp[i][t]) - float(logp_old[i][t]))
            a = float(advantages[i][t])
            clipped = min(max(ratio, 1 - low), 1 + high)
            d = float(logp_ref[i][t]) - float(logp[i][t])
            losses.append(-min(ratio * a, clipped * a) + beta * (math.exp(d) - d - 1))
        if losses:
            per_row.append(losses)
    total = sum(sum(row) for row in per_row)
    if loss_type == "sequence_mean":
        return sum(sum(row) / len(row) for row in per_row) / len(per_row)
    if loss_type == "token_mean":
        return total / sum(len(row) for row in per_row)
    return total / (len(per_row) * longest)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_against_loops(loss_type, beta):
    batch = random_batch()
    expected = loops(*batch, loss_type, 16, 0.2, 0.28, beta)
    logp, logp_old, advantages, mask, logp_ref = map(jnp.asarray, batch)
    loss, _ = policy_loss(
        logp, logp_old, advantages, mask, 0.2, 0.28, loss_type, 16, beta=beta, logp_ref=logp_ref
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_add_up_with_the_weights_of_the_whole(loss_type):
    logp, logp_old, advantages, mask, _ = map(jnp.asarray, random_batch())
    whole = lambda x: policy_loss(x, logp_old, advantages, mask, 0.2, 0.28, loss_type, 16)[0]  # noqa: E731
    weights = loss_weights(mask, loss_type, 16)

    def parts(x):
        cut = lambda a, i: a[i : i + 1]  # noqa: E731
        return sum(
            policy_loss(
                cut(x, i), cut(logp_old, i), cut(advantages, i), cut(mask, i), 0.2, 0.28,
                weights=cut(weights, i),
            )[0]
            for i in range(len(mask))
        )  # fmt: skip

    value, gradient = jax.value_and_grad(whole)(logp)
    value_of_parts, gradient_of_parts = jax.value_and_grad(parts)(logp)
    np.testing.assert_allclose(value_of_parts, value, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_parts, gradient, atol=1e-7)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_changes_nothing_and_has_no_gradient(loss_type, garbage):
    *clean, mask, logp_ref = random_batch()
    clean.append(logp_ref)
    mask = jnp.asarray(mask)

    def run(logp, logp_old, advantages, logp_ref):
        return policy_loss(
            logp, logp_old, advantages, mask, 0.2, 0.28, loss_type, 16, beta=0.1, logp_ref=logp_ref
        )

    zeroed = [jnp.where(mask, x, 0.0) for x in clean]
    dirty = [jnp.where(mask, x, garbage) for x in clean]
    (value, metrics), gradient = jax.value_and_grad(run, has_aux=True)(*zeroed)
    (value2, metrics2), gradient2 = jax.value_and_grad(run, has_aux=True)(*dirty)
    assert value == value2 and metrics == metrics2
    np.testing.assert_array_equal(gradient, gradient2)
    assert np.all(np.asarray(gradient2)[~np.asarray(mask)] == 0.0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_ratio_one_gives_the_reinforce_gradient(loss_type):
    _, logp, advantages, mask, _ = map(jnp.asarray, random_batch())
    weights = loss_weights(mask, loss_type, 16)
    gradient = jax.grad(
        lambda x: policy_loss(x, logp, advantages, mask, 0.2, 0.28, loss_type, 16)[0]
    )(logp)
    # ∇ −Σ w·Â·log π
    np.testing.assert_allclose(gradient, -weights * jnp.where(mask, advantages, 0.0), rtol=1e-5)


def test_zero_advantages_give_exactly_zero_gradient():
    logp, logp_old, advantages, mask, _ = map(jnp.asarray, random_batch())
    for zero in (jnp.zeros_like(advantages), -jnp.zeros_like(advantages)):
        value, gradient = jax.value_and_grad(lambda x, a: policy_loss(x, logp_old, a, mask)[0])(
            logp, zero
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_an_empty_mask_gives_zero():
    logp, logp_old, advantages, mask, _ = map(jnp.asarray, random_batch())
    value, gradient = jax.value_and_grad(
        lambda x: policy_loss(x, logp_old, advantages, jnp.zeros_like(mask))[0]
    )(logp * jnp.nan)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_advantages_per_rollout_are_shared_by_its_tokens():
    logp, logp_old, advantages, mask, _ = map(jnp.asarray, random_batch())
    shared = jnp.broadcast_to(advantages[:, :1], advantages.shape)
    assert (
        policy_loss(logp, logp_old, advantages[:, 0], mask)[0]
        == policy_loss(logp, logp_old, shared, mask)[0]
    )


@pytest.mark.parametrize(
    ("trl", "ours"), [("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant")]
)
def test_trl(trl, ours):
    """The lines of TRL's GRPOTrainer, in NumPy, on rows that all have tokens."""
    logps, old_logps, advantages, mask, ref_logps = random_batch(1)
    mask[2, :4] = True
    advantages = advantages[:, 0]
    beta, epsilon_low, epsilon_high, max_completion_length = 0.04, 0.2, 0.28, 16

    per_token_kl = np.exp(ref_logps - logps) - (ref_logps - logps) - 1
    coef_1 = np.exp(logps - old_logps)
    coef_2 = np.clip(coef_1, 1 - epsilon_low, 1 + epsilon_high)
    per_token_loss = -np.minimum(coef_1 * advantages[:, None], coef_2 * advantages[:, None])
    per_token_loss = per_token_loss + beta * per_token_kl
    if trl == "grpo":
        loss = ((per_token_loss * mask).sum(-1) / np.maximum(mask.sum(-1), 1.0)).mean()
    elif trl == "bnpo":
        loss = (per_token_loss * mask).sum() / np.maximum(mask.sum(), 1.0)
    else:
        loss = (per_token_loss * mask).sum() / (len(mask) * max_completion_length)
    is_low_clipped = (coef_1 < 1 - epsilon_low) & (advantages[:, None] < 0)
    is_high_clipped = (coef_1 > 1 + epsilon_high) & (advantages[:, None] > 0)
    masked_mean = lambda x: (x * mask).sum() / mask.sum()  # noqa: E731

    value, metrics = policy_loss(
        *map(jnp.asarray, (logps, old_logps, advantages, mask)),
        epsilon=epsilon_low, epsilon_high=epsilon_high, loss_type=ours,
        max_completion_length=max_completion_length, beta=beta, logp_ref=jnp.asarray(ref_logps),
    )  # fmt: skip
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    mean = {name: pair[0] / pair[1] for name, pair in metrics.items() if isinstance(pair, tuple)}
    np.testing.assert_allclose(mean["clip_ratio/low_mean"], masked_mean(is_low_clipped))
    np.testing.assert_allclose(mean["clip_ratio/high_mean"], masked_mean(is_high_clipped))
    np.testing.assert_allclose(mean["kl"], masked_mean(per_token_kl), rtol=1e-5)
