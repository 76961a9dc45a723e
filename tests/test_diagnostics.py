import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason import diagnostics
from jaxrl_reason.config import IspoSection
from jaxrl_reason.metrics import finalise
from jaxrl_reason.types import Signals

pytestmark = pytest.mark.usefixtures("strict_jax")

# Four groups of two: all right, all wrong, mixed, mixed. Lengths 1 to 3 of 3.
LENGTHS = np.array([1, 2, 3, 3, 2, 1, 3, 1])
MASK = jnp.asarray(np.arange(3) < LENGTHS[:, None])
CORRECT = jnp.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def make_signals(**fields):
    zeros = jnp.where(MASK, 0.0, jnp.nan)  # garbage under the mask in every case
    values = {
        "mask": MASK,
        "correct": CORRECT,
        "logp": zeros,
        "entropy": zeros,
        "logp_sampler": zeros,
        "truncated": jnp.zeros(8, bool),
    }
    return Signals(**values | fields)


def test_rollout_metrics():
    logp = jnp.full((8, 3), -1.0)
    signals = make_signals(
        logp=jnp.where(MASK, logp, jnp.nan),
        logp_sampler=jnp.where(MASK, logp.at[0, 0].set(-1.5), jnp.inf),
        entropy=jnp.where(MASK, 0.25, jnp.nan),
        truncated=jnp.arange(8) < 2,
    )
    has_format, thinking = jnp.arange(8) < 6, jnp.arange(8) < 4
    # rewards: flat 1; ±: σ of (0, 2) is √2; flat 0; (1, 0) is √½
    reward = jnp.array([1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0])
    lengths = signals.mask.sum(axis=1)
    own = (signals.truncated, signals.correct, has_format, thinking)
    row = finalise(
        diagnostics.completion_metrics(lengths, *own, 2)
        | diagnostics.reward_metrics(signals, reward, 2)
    )
    assert row["reward"] == 5 / 8
    np.testing.assert_allclose(row["reward_std"], (2**0.5 + 0.5**0.5) / 4, rtol=1e-6)
    assert row["frac_reward_zero_std"] == 0.5
    assert row["accuracy"] == 0.5
    assert row["completions/mean_length"] == 2.0  # 16 tokens, 8 rollouts
    assert (row["completions/min_length"], row["completions/max_length"]) == (1, 3)
    assert row["completions/clipped_ratio"] == 0.25
    assert (row["thinking_rate"], row["format_rate"]) == (0.5, 0.75)
    assert row["entropy"] == 0.25
    assert row["sampling/sampling_logp_difference/mean"] == 0.5 / 16
    assert row["sampling/sampling_logp_difference/max"] == 0.5
    assert row["zero_advantage/outcome"] == 0.5
    assert row["zero_advantage/all_correct"] == 0.25
    assert row["zero_advantage/all_wrong"] == 0.25


def test_blank_rows_count_nowhere():
    """The last two groups are blank: what is left over is the metrics of the first two."""
    mask = MASK & (jnp.arange(8) < 4)[:, None]
    advantages = jnp.where(mask, 1.0, 0.0)
    reward = jnp.array([1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    blank = make_signals(mask=mask, correct=CORRECT.at[4:].set(0.0))
    got = diagnostics.reward_metrics(blank, reward, 2)
    got |= diagnostics.advantage_metrics(blank, advantages, 2)
    row = finalise(got)
    assert row["reward"] == 1.0
    assert row["frac_reward_zero_std"] == 0.5
    assert row["zero_advantage/gradient"] == 0.0  # of the two groups that are there
    assert row["useful_rollouts"] == 1.0
    assert got["ispo/same_outcome_advantage_share/all_wrong"][0] == 2.0  # of group 1 alone
    assert row["ispo/same_outcome_advantage_share"] == 1.0


def test_zero_advantage_accounting():
    advantages = jnp.array([0.0, 0.0, 0.5, -0.5, 1.0, -1.0, -1.0, 1.0])[:, None] * jnp.ones((1, 3))
    row = finalise(diagnostics.advantage_metrics(make_signals(), advantages, 2))
    assert row["useful_rollouts"] == 6 / 8
    assert row["zero_advantage/gradient"] == 1 / 4  # whatever the rewards are
    # Σ|Â| of the groups: 0, 1, 2, 2
    assert row["ispo/same_outcome_advantage_share"] == 1 / 5
    assert row["ispo/same_outcome_advantage_share/all_correct"] == 0
    assert row["ispo/same_outcome_advantage_share/all_wrong"] == 1 / 5


def test_a_rollout_counts_by_its_mean_token_however_long_it_is():
    advantages = jnp.where(MASK, 1.0, jnp.nan)
    row = finalise(diagnostics.advantage_metrics(make_signals(), advantages, 2))
    assert row["ispo/same_outcome_advantage_share"] == 0.5
    assert row["useful_rollouts"] == 1.0


def test_the_share_of_nothing_is_no_number():
    row = finalise(diagnostics.advantage_metrics(make_signals(), jnp.zeros((8, 3)), 2))
    assert np.isnan(row["ispo/same_outcome_advantage_share"])
    assert row["useful_rollouts"] == 0


def test_token_metrics():
    # 𝒜 with top_fraction 0.5: ⌈n/2⌉ = 1, 1, 2, 2, 1, 1, 2, 1 = 11 of 16 tokens, always the first ones
    entropy = jnp.where(MASK, jnp.array([[3.0, 2.0, 1.0]]), jnp.nan)
    # the first token of rollouts 0 (right) and 2, 3 (wrong) drifted, and the last of rollout 2
    logp = jnp.zeros((8, 3))
    drift = logp.at[jnp.array([0, 2, 3]), 0].set(0.5).at[2, 2].set(-1.0)
    signals = make_signals(
        entropy=entropy,
        logp=jnp.where(MASK, logp, jnp.nan),
        logp_ref=jnp.where(MASK, drift, jnp.nan),
    )
    section = IspoSection(top_fraction=0.5, drift_threshold=0.3)
    row = finalise(diagnostics.token_metrics(signals, {}, section))
    assert row["ispo/uncertain_fraction"] == 11 / 16
    assert row["ispo/drift_fraction"] == 4 / 16
    assert row["ispo/critical_fraction"] == 3 / 16
    assert row["ispo/critical_entropy/correct"] == 3.0
    assert row["ispo/critical_entropy/wrong"] == 3.0
    # right: rollouts 0, 1, 4, 7 give 3 each; wrong: 2, 3, 6 give 3 and 2, 5 gives 3
    assert row["ispo/uncertain_entropy/correct"] == 3.0
    np.testing.assert_allclose(row["ispo/uncertain_entropy/wrong"], (3 * 5 + 3) / 7, rtol=1e-6)
    np.testing.assert_allclose(row["ispo/kl_ref"], -(3 * 0.5 - 1.0) / 16)  # mean of log π − log π_0


def answer_signals(ifd, answered=None, **fields):
    """Signals whose conditional IFD is `ifd`, from answers of one token."""
    answered = np.ones(8, bool) if answered is None else np.asarray(answered)
    value = jnp.where(jnp.asarray(answered), jnp.asarray(ifd), jnp.nan)[:, None]
    return make_signals(
        answer_logp=value,
        answer_logp_ablated=jnp.where(jnp.asarray(answered)[:, None], 0.0, jnp.nan),
        answer_mask=jnp.asarray(answered)[:, None],
        **fields,
    )


def test_ifd_metrics():
    # right: rollouts 0, 1, 4, 7; wrong: 2, 3, 5 and 6, which has no answer
    ifd = [0.1, 0.3, -0.1, 9.0, 0.3, -9.0, 5.0, 0.7]
    answered = [True] * 6 + [False, True]
    row = finalise(diagnostics.ifd_metrics(answer_signals(ifd, answered), 2))
    np.testing.assert_allclose(row["ispo/ifd/correct"], (0.1 + 0.3 + 0.3 + 0.7) / 4, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/ifd/wrong"], (-0.1 + 9.0 - 9.0) / 3, rtol=1e-4)
    np.testing.assert_allclose(row["ispo/ifd_std/correct"], np.std([0.1, 0.3, 0.3, 0.7]), rtol=1e-4)
    np.testing.assert_allclose(row["ispo/ifd_std/wrong"], np.std([-0.1, 9.0, -9.0]), rtol=1e-4)
    # groups 0 and 1 agree: |0.3 − 0.1|/√2 and |9 + 0.1|/√2
    np.testing.assert_allclose(
        row["ispo/ifd_std_same_outcome"], (0.2 + 9.1) / 2 / 2**0.5, rtol=1e-5
    )
    edges = diagnostics.IFD_EDGES
    counts = {"correct": np.zeros(len(edges) + 1), "wrong": np.zeros(len(edges) + 1)}
    counts["correct"][[edges.index(0.25), edges.index(1.0)]] = 1  # 0.1 and 0.7
    counts["correct"][edges.index(0.5)] = 2  # 0.3 twice
    counts["wrong"][[0, edges.index(0.0), len(edges)]] = 1  # −9, −0.1 and 9
    for name, expected in counts.items():
        np.testing.assert_array_equal(row[f"ispo/ifd_histogram/{name}"], expected)


def test_ifd_of_no_rollout_is_no_number():
    signals = answer_signals([0.5] * 8, correct=jnp.zeros(8))
    row = finalise(diagnostics.ifd_metrics(signals, 2))
    assert np.isnan(row["ispo/ifd/correct"]) and np.isnan(row["ispo/ifd_std/correct"])
    assert row["ispo/ifd_std/wrong"] == 0
    np.testing.assert_array_equal(row["ispo/ifd_histogram/correct"], np.zeros(14))


def composite(ifd, token, section, size=2, correct=CORRECT):
    """Finalised metrics of Eq. 8 with these terms."""
    ifd, token = jnp.asarray(ifd), jnp.asarray(token)
    reward = correct + section.lambda1 * (2.0 * correct - 1.0) * ifd + section.lambda2 * token
    signals = make_signals(correct=correct)
    terms = {"ifd": ifd, "token": token}
    return finalise(diagnostics.composite_metrics(signals, reward, terms, section, size))


def test_order_violations_count_mixed_groups_only():
    section = IspoSection(lambda1=1.0, lambda2=0.0)
    # group 2: right 1 + 0, wrong 0 − (−1) = 1, a tie is a violation; group 3: wrong −0, right 1
    row = composite([0.0, 9.0, 9.0, -9.0, 0.0, -1.0, 0.0, 0.0], jnp.zeros(8), section)
    assert row["ispo/order_violations"] == 0.5
    row = composite(jnp.zeros(8), jnp.zeros(8), section)
    assert row["ispo/order_violations"] == 0.0


def test_order_violations_without_a_mixed_group_are_no_number():
    row = composite(jnp.zeros(8), jnp.zeros(8), IspoSection(), correct=jnp.ones(8))
    assert np.isnan(row["ispo/order_violations"])


def test_terms_and_dense_to_outcome():
    section = IspoSection(lambda1=0.5, lambda2=0.1)
    ifd = [0.4, 0.0, 0.0, 0.0, 0.4, 0.4, 0.0, 0.0]
    token = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    row = composite(ifd, token, section)
    np.testing.assert_allclose(row["ispo/ifd_term"], (0.2 + 0.2 - 0.2) / 8, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/token_term"], 0.1 / 8, rtol=1e-5)
    # dense terms per group: (0.2, 0), (0.1, 0), (0.2, −0.2), (0, 0); σ = gap/√2, over 1/√2
    np.testing.assert_allclose(row["ispo/dense_to_outcome"], (0.2 + 0.1 + 0.4) / 4, rtol=1e-4)


def test_parts_of_the_variance_by_hand():
    # a group of four, all right: IFD and token deviate by ±1 together, so each variance is 4/3
    ifd, token = [1.0, -1.0, 1.0, -1.0] * 2, [1.0, -1.0, 1.0, -1.0] * 2
    section = IspoSection(lambda1=0.5, lambda2=0.1)
    row = composite(ifd, token, section, size=4, correct=jnp.ones(8))
    np.testing.assert_allclose(row["ispo/variance/ifd"], 0.25 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/variance/token"], 0.01 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/variance/cross"], 2 * 0.5 * 0.1 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/variance/total"], 0.6**2 * 4 / 3, rtol=1e-5)
    # all wrong: the IFD enters with a minus, so the two terms cancel
    row = composite(ifd, token, section, size=4, correct=jnp.zeros(8))
    np.testing.assert_allclose(row["ispo/variance/cross"], -2 * 0.5 * 0.1 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(row["ispo/variance/total"], 0.4**2 * 4 / 3, rtol=1e-5)


def test_parts_of_the_variance_add_up():
    rng = np.random.default_rng(0)
    ifd, token = rng.normal(size=(2, 8)).astype(np.float32)
    row = composite(ifd, token, IspoSection(lambda1=0.7, lambda2=0.4), size=2)
    parts = sum(row[f"ispo/variance/{name}"] for name in ("ifd", "token", "cross"))
    np.testing.assert_allclose(parts, row["ispo/variance/total"], rtol=1e-4)


def test_dense_warning():
    assert diagnostics.dense_warning(0.5, 0.5, 0.1) is None
    assert diagnostics.dense_warning(float("nan"), 0.5, 0.1) is None
    advice = diagnostics.dense_warning(1.25, 0.5, 0.1)
    assert "ispo/dense_to_outcome is 1.25" in advice and "125%" in advice
    assert "ispo.lambda1=0.08 " in advice  # 0.5 · 0.2 / 1.25
    assert "ispo.lambda2=0.016)" in advice  # 0.1 · 0.2 / 1.25
