"""GSPO's sequence ratio, the dual clip, the entropy bonus and truncated importance sampling."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.group import group_advantages, leave_one_out_advantages
from jaxrl_reason.objectives.surrogate import (
    LOSS_TYPES,
    importance_ratio,
    loss_weights,
    policy_loss,
    truncated_importance,
)
from tests import oracles

pytestmark = pytest.mark.usefixtures("strict_jax")

LONGEST = 16
LEVELS = ("token", "sequence")


def inputs(seed=0, scale=0.5):
    """logp, logp_old, advantages [B], mask, and the log-probs of π_0 and entropies by name."""
    data, rng = oracles.ragged_batch(seed), np.random.default_rng(seed + 100)
    old = data["logp"] + scale * rng.normal(size=data["logp"].shape).astype(np.float32)
    batch = data["logp"], old, data["reward"], data["mask"]
    extra = {"logp_ref": jnp.asarray(data["logp_ref"]), "entropy": jnp.asarray(data["entropy"])}
    return [jnp.asarray(x) for x in batch], extra


@functools.cache
def compiled(settings):
    def loss(logp, old, advantages, mask, extra):
        settings_and_extra = dict(settings) | extra
        return policy_loss(logp, old, advantages, mask, **settings_and_extra)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(batch, extra=None, **settings):
    """(loss, gradient in log π, metrics)."""
    (value, metrics), gradient = compiled(tuple(settings.items()))(*batch, extra or {})
    return value, gradient, metrics


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.2, "epsilon_high": 0.28},
        {"epsilon": 0.1, "epsilon_high": 0.1, "delta": 1.3},
        {"epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.1, "entropy_coef": 0.05, "delta": 3.0},
    ],
)
def test_against_loops(level, loss_type, settings):
    for seed, per_token in ((0, False), (1, False), (2, True)):
        batch, extra = inputs(seed)
        if per_token:
            batch[2] = jax.random.normal(jax.random.key(seed), batch[0].shape)
        value, gradient, _ = run(
            batch, extra, loss_type=loss_type, max_completion_length=LONGEST,
            importance_sampling_level=level, **settings,
        )  # fmt: skip
        names = {"epsilon": "low", "epsilon_high": "high", "delta": "c"}
        renamed = {names.get(name, name): number for name, number in settings.items()}
        expected, slopes = oracles.surrogate(
            *map(np.asarray, batch), loss_type=loss_type, longest=LONGEST, level=level,
            **renamed, **extra,
        )  # fmt: skip
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, slopes, rtol=2e-4, atol=1e-7)


def test_gspo_by_hand():
    # log-ratios 0.2 and −0.1: s = e^0.05, Â = 2: loss −2s, and −2s/2 in each token
    batch = jnp.array([[-0.8, -1.1]]), jnp.array([[-1.0, -1.0]]), jnp.array([2.0])
    s = math.exp(0.05)
    ones = jnp.ones((1, 2), bool)
    value, gradient, _ = run([*batch, ones], importance_sampling_level="sequence")
    np.testing.assert_allclose(value, -2 * s, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-s, -s]], rtol=1e-6)
    # a range of 0.04 is left by s though both tokens' own ratios leave 0.04 on either side
    value, gradient, metrics = run(
        [*batch, ones], importance_sampling_level="sequence", epsilon=0.04
    )
    np.testing.assert_allclose(value, -2 * 1.04, rtol=1e-6)
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])
    top, count = metrics["clip_ratio/high_mean"]
    assert top == count > 0


def test_gspo_keeps_each_tokens_own_advantage():
    """log s_t = log π − sg(log π) + sg(log s): the gradient in token t is −w·s·Â_t."""
    advantages = jnp.array([[2.0, -1.0]])
    batch = jnp.array([[-0.8, -1.1]]), jnp.array([[-1.0, -1.0]]), advantages
    s = math.exp(0.05)
    value, gradient, _ = run([*batch, jnp.ones((1, 2), bool)], importance_sampling_level="sequence")
    np.testing.assert_allclose(value, -s * (2 - 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, -s * advantages / 2, rtol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("clip", [(0.2, 0.2), (3e-4, 4e-4)])
def test_gspo_of_uniform_advantages_is_the_plain_sequence_form(loss_type, clip):
    """−Σ_i w_i·min(s_i·Â_i, clip(s_i)·Â_i) with s differentiated as exp(mean log-ratio)."""
    batch, _ = inputs(3, scale=1e-3 if clip[0] < 0.1 else 0.5)
    logp, old, advantages, mask = batch
    weights = loss_weights(mask, loss_type, LONGEST).sum(axis=1)

    def plain(logp):
        lengths = jnp.maximum(mask.sum(axis=1).astype(jnp.float32), 1.0)
        s = jnp.exp(jnp.where(mask, logp - old, 0.0).sum(axis=1) / lengths)
        clipped = jnp.clip(s, 1 - clip[0], 1 + clip[1])
        return -jnp.sum(weights * jnp.minimum(s * advantages, clipped * advantages))

    expected, slopes = jax.value_and_grad(plain)(logp)
    value, gradient, _ = run(
        batch, epsilon=clip[0], epsilon_high=clip[1], loss_type=loss_type,
        max_completion_length=LONGEST, importance_sampling_level="sequence",
    )  # fmt: skip
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7)
    assert 0 < np.count_nonzero(slopes) < np.count_nonzero(mask)  # some rows clipped, some not


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gspo_of_one_token_answers_is_grpo(loss_type):
    (logp, old, advantages, mask), _ = inputs(4)
    mask = mask & (jnp.arange(9)[None] < 1)
    settings = {"loss_type": loss_type, "max_completion_length": LONGEST}
    token, sequence = (
        run((logp, old, advantages, mask), importance_sampling_level=level, **settings)
        for level in LEVELS
    )
    np.testing.assert_allclose(sequence[0], token[0], rtol=1e-6)
    np.testing.assert_allclose(sequence[1], token[1], rtol=1e-6)


@pytest.mark.parametrize("compile_it", [False, True])
def test_gspo_has_one_ratio_per_row(compile_it):
    """Bitwise: at clips of 3e-4 the rounding of log π (about 12: 1e-6) must not split a row."""
    rng = np.random.default_rng(0)
    old = (-12 * rng.random((6, 40))).astype(np.float32)
    logp = old + (3e-4 * rng.normal(size=old.shape)).astype(np.float32)
    mask = jnp.asarray(np.arange(40) < rng.integers(20, 41, 6)[:, None])
    call = jax.jit(importance_ratio, static_argnums=3) if compile_it else importance_ratio
    ratio = np.asarray(call(jnp.asarray(logp), jnp.asarray(old), mask, "sequence"))
    gap = logp.astype(np.float64) - old
    for i in range(6):
        mean = gap[i][np.asarray(mask)[i]].mean()
        np.testing.assert_allclose(ratio[i][np.asarray(mask)[i]], math.exp(mean), rtol=1.5e-7)
        assert len(np.unique(ratio[i][np.asarray(mask)[i]])) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_ratio_one_gives_the_reinforce_gradient(level, loss_type):
    (logp, _, advantages, mask), _ = inputs()
    _, gradient, metrics = run(
        (logp, logp, advantages, mask), loss_type=loss_type, max_completion_length=LONGEST,
        importance_sampling_level=level, delta=3.0,
    )  # fmt: skip
    expected = -loss_weights(mask, loss_type, LONGEST) * advantages[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert metrics["policy/ratio_deviation/max"] == 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_equal_rewards_give_exactly_zero_gradient(level):
    (logp, old, _, mask), _ = inputs()
    reward = jnp.full(12, 100.3)
    for advantages in (group_advantages(reward, 4), leave_one_out_advantages(reward, 4)):
        value, gradient, _ = run(
            (logp, old, advantages, mask), importance_sampling_level=level, delta=3.0
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, np.zeros((12, 9)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "counted"),
    [
        # c = 3: Â < 0 and ρ > 3 is cut at 3·|Â| and stops
        (4.0, -2.0, 6.0, 0.0, 1),
        (2.5, -2.0, 5.0, 5.0, 0),
        (0.5, -2.0, 1.6, 0.0, 0),
        # Â > 0 is the clip's business
        (4.0, 2.0, -2.4, 0.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
    ],
)
def test_dual_clip_by_hand(ratio, advantage, loss, gradient, counted):
    batch = jnp.array([[math.log(ratio)]]), jnp.zeros((1, 1)), jnp.array([advantage])
    value, slope, metrics = run([*batch, jnp.ones((1, 1), bool)], delta=3.0)
    np.testing.assert_allclose([value, slope[0, 0]], [loss, gradient], rtol=1e-6)
    assert metrics["clip_ratio/dual_mean"] == (counted, 1)


@pytest.mark.parametrize("level", LEVELS)
def test_dual_clip_changes_negative_advantages_over_its_bound_only(level):
    batch, _ = inputs(5, scale=1.0)
    logp, old, advantages, mask = batch
    off, on = (run(batch, importance_sampling_level=level, delta=delta) for delta in (0.0, 1.5))
    ratio = importance_ratio(logp, old, mask, level)
    cut = np.asarray(mask & (ratio > 1.5) & (advantages < 0)[:, None])
    assert cut.any() and not np.array_equal(off[0], on[0])
    np.testing.assert_array_equal(np.asarray(on[1])[cut], 0.0)
    np.testing.assert_array_equal(np.asarray(on[1])[~cut], np.asarray(off[1])[~cut])
    np.testing.assert_array_equal(run(batch, importance_sampling_level=level, delta=1e6)[1], off[1])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_entropy_bonus(loss_type):
    """−coef·Σ w·H beside the surrogate; its gradient in H is −coef·w, that in log π is untouched."""
    batch, extra = inputs()
    mask, entropy = batch[3], extra["entropy"]
    settings = {"loss_type": loss_type, "max_completion_length": LONGEST}
    weights = loss_weights(mask, loss_type, LONGEST)
    plain, gradient, _ = run(batch, **settings)
    value, same, _ = run(batch, extra, entropy_coef=0.3, **settings)
    np.testing.assert_allclose(value, plain - 0.3 * np.sum(weights * entropy), rtol=1e-5)
    np.testing.assert_array_equal(same, gradient)
    slope = jax.grad(lambda h: policy_loss(*batch, entropy=h, entropy_coef=0.3, **settings)[0])(
        entropy
    )
    np.testing.assert_allclose(slope, -0.3 * weights, rtol=1e-6)


def test_what_is_refused_is_named():
    batch, _ = inputs()
    with pytest.raises(ValueError, match="entropy_coef"):
        policy_loss(*batch, entropy_coef=0.1)
    with pytest.raises(ValueError, match="'group' is not one of"):
        policy_loss(*batch, importance_sampling_level="group")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_the_mask_hides_changes_nothing_and_has_no_gradient(level, garbage):
    (logp, old, advantages, mask), extra = inputs()
    advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    settings = {"importance_sampling_level": level, "delta": 3.0, "beta": 0.1, "entropy_coef": 0.1}

    def both(value):
        fill = lambda x: jnp.where(mask, x, value)  # noqa: E731

        def loss(logp, entropy):
            return policy_loss(
                logp, fill(old), fill(advantages), mask, logp_ref=fill(extra["logp_ref"]),
                entropy=entropy, **settings,
            )  # fmt: skip

        call = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return call(fill(logp), fill(extra["entropy"]))

    (clean, metrics), gradients = both(0.0)
    (dirty, dirty_metrics), dirty_gradients = both(garbage)
    assert clean == dirty and metrics == dirty_metrics
    for gradient, same in zip(gradients, dirty_gradients, strict=True):
        np.testing.assert_array_equal(gradient, same)
        assert np.all(np.asarray(same)[~np.asarray(mask)] == 0.0)


@pytest.mark.parametrize("level", LEVELS)
def test_micro_batches_add_up(level):
    batch, extra = inputs(6)
    settings = {"importance_sampling_level": level, "delta": 2.0, "beta": 0.1, "entropy_coef": 0.1}
    extra["weights"] = loss_weights(batch[3], "token_mean")
    value, gradient, _ = run(batch, extra, **settings)
    cut = lambda x, i: x[i : i + 3]  # noqa: E731
    parts = [
        run([cut(x, i) for x in batch], {name: cut(x, i) for name, x in extra.items()}, **settings)
        for i in range(0, 12, 3)
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), value, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, atol=1e-7)


def test_truncated_importance_by_hand():
    # ratios e^0.5, e^−1 and e^2 > 2; the last is padding
    old, sampler = (
        jnp.array([[-1.0, -2.0, -1.0, jnp.nan]]),
        jnp.array([[-1.5, -1.0, -3.0, jnp.inf]]),
    )
    mask = jnp.array([[1, 1, 1, 0]], bool)
    expected = [[math.exp(0.5), math.exp(-1), 2.0, 0.0]]
    np.testing.assert_allclose(truncated_importance(old, sampler, mask, 2.0), expected, rtol=1e-6)
    np.testing.assert_array_equal(truncated_importance(old, old, mask, 2.0), [[1, 1, 1, 0]])


def test_a_factor_of_the_advantage_is_one_of_the_clipped_surrogate():
    (logp, old, advantages, mask), _ = inputs(7)
    factor = truncated_importance(old, logp, mask, 1.2)
    scaled = run((logp, old, factor * advantages[:, None], mask), delta=3.0)
    weighted = run(
        (logp, old, advantages, mask), {"weights": factor * loss_weights(mask, "sequence_mean")},
        delta=3.0,
    )  # fmt: skip
    np.testing.assert_allclose(scaled[0], weighted[0], rtol=1e-5)
    np.testing.assert_allclose(scaled[1], weighted[1], rtol=1e-5, atol=1e-8)
