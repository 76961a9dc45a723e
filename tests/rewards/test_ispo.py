import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.rewards.ispo import (
    CRITICAL_VARIANTS,
    composite_reward,
    conditional_ifd,
    critical_tokens,
    drifted_tokens,
    token_reward,
    uncertain_tokens,
)

pytestmark = pytest.mark.usefixtures("strict_jax")

NAN = jnp.nan


def test_conditional_ifd_is_a_mean_over_answer_tokens():
    # Eq. 2: ((−0.1 + 2.0) + (−0.3 + 1.5)) / 2 = (1.9 + 1.2) / 2
    ifd = conditional_ifd(
        jnp.array([[-0.1, -0.3, NAN]]),
        jnp.array([[-2.0, -1.5, NAN]]),
        jnp.array([[True, True, False]]),
    )
    np.testing.assert_allclose(ifd, [1.55], rtol=1e-6)


def test_conditional_ifd_is_negative_where_thinking_misleads():
    ifd = conditional_ifd(jnp.array([[-3.0]]), jnp.array([[-1.0]]), jnp.array([[True]]))
    np.testing.assert_allclose(ifd, [-2.0])


def test_no_answer_has_no_ifd():
    garbage = jnp.array([[NAN, -jnp.inf]])
    np.testing.assert_array_equal(conditional_ifd(garbage, garbage, jnp.zeros((1, 2), bool)), [0.0])


@pytest.mark.parametrize(
    ("tokens", "fraction", "size"),
    [
        (100, 0.15, 15),  # in float32 0.15·100 rounds up to 16
        (100, 0.1, 10),
        (101, 0.1, 11),
        (5, 0.1, 1),
        (1, 0.1, 1),
        (0, 0.1, 0),
        (7, 1.0, 7),
        (5, 1e-5, 1),
    ],
)
def test_uncertain_set_has_the_exact_size(tokens, fraction, size):
    entropy = jnp.zeros((1, 128))  # all equal: thresholds would take all or none
    mask = jnp.arange(128)[None] < tokens
    chosen = uncertain_tokens(entropy, mask, fraction)
    # Eq. 4, ties to the earlier token
    np.testing.assert_array_equal(chosen[0], np.arange(128) < size)


def test_uncertain_set_is_per_rollout_and_takes_the_largest():
    entropy = jnp.array([[0.1, 0.9, 0.5, 9.0], [5.0, 6.0, 7.0, 8.0]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(
        uncertain_tokens(entropy, mask, 0.5).astype(int), [[0, 1, 1, 0], [0, 0, 1, 1]]
    )


def test_drift_counts_both_directions_and_the_threshold_itself():
    # Eq. 5 with τ_Δ = 0.25, exact in binary: |Δ| = 0.25, 0.25, 0.125, 1, (masked)
    logp = jnp.array([[-1.0, -1.0, -1.0, -2.0, NAN]])
    logp_ref = jnp.array([[-1.25, -0.75, -1.125, -1.0, 0.0]])
    mask = jnp.array([[1, 1, 1, 1, 0]], bool)
    np.testing.assert_array_equal(
        drifted_tokens(logp, logp_ref, mask, 0.25).astype(int), [[1, 1, 0, 1, 0]]
    )


# entropies pick tokens 1 and 2 (half of four), the drift picks 2 and 3
ENTROPY = jnp.array([[0.1, 0.8, 0.9, 0.2, NAN]])
LOGP = jnp.array([[-1.0, -1.0, -1.0, -1.0, NAN]])
LOGP_REF = jnp.array([[-1.0, -1.1, -1.5, -0.2, NAN]])
MASK = jnp.array([[1, 1, 1, 1, 0]], bool)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("entropy", [0, 1, 1, 0, 0]),
        ("drift", [0, 0, 1, 1, 0]),
        ("union", [0, 1, 1, 1, 0]),
        ("intersection", [0, 0, 1, 0, 0]),
    ],
)
def test_critical_variants(variant, expected):
    chosen = critical_tokens(ENTROPY, LOGP, LOGP_REF, MASK, 0.5, 0.3, variant)
    np.testing.assert_array_equal(chosen.astype(int), [expected])


def test_the_default_is_the_intersection_with_the_papers_numbers():
    entropy, mask = jnp.arange(20.0)[None], jnp.ones((1, 20), bool)
    logp = jnp.zeros((1, 20))
    # 𝒜 has ⌈0.1·20⌉ = 2 tokens: 18 and 19; of these 19 drifted by 0.31, 18 by 0.29
    logp_ref = logp.at[0, 18].set(-0.29).at[0, 19].set(-0.31)
    np.testing.assert_array_equal(
        critical_tokens(entropy, logp, logp_ref, mask)[0], np.arange(20) == 19
    )


def test_the_entropy_variant_needs_no_reference():
    assert critical_tokens(ENTROPY, LOGP, None, MASK, variant="entropy").sum() == 1
    for variant in set(CRITICAL_VARIANTS) - {"entropy"}:
        with pytest.raises(ValueError, match="logp_ref"):
            critical_tokens(ENTROPY, LOGP, None, MASK, variant=variant)


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="both"):
        critical_tokens(ENTROPY, LOGP, LOGP_REF, MASK, variant="both")


@pytest.mark.parametrize("variant", ["intersection", "drift"])
def test_before_the_first_update_nothing_is_critical(variant):
    chosen = critical_tokens(ENTROPY, LOGP, LOGP, MASK, variant=variant)
    assert not chosen.any()
    for correct in (0.0, 1.0):
        reward = token_reward(LOGP, ENTROPY, chosen, jnp.array([correct]))
        np.testing.assert_array_equal(reward, [0.0])


# two rollouts with the same signals, the first right, the second wrong
TOKEN_LOGP = jnp.array([[-0.5, -1.5, NAN]] * 2)
TOKEN_ENTROPY = jnp.array([[0.1, 0.7, NAN]] * 2)
CRITICAL = jnp.array([[True, True, False]] * 2)
CORRECT = jnp.array([1.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "right", "wrong"),
    [
        # Eq. 6: (−0.5 − 1.5)/2. Eq. 7: ((0.1 − (0.3 − 0.1)) + 0.7)/2 = (−0.1 + 0.7)/2
        ({}, -1.0, 0.3),
        ({"beta": 0.0}, -1.0, 0.4),  # (0.1 + 0.7)/2
        ({"alpha": 2.0}, -1.0, 0.7),  # ((0.2 − 0.2) + 1.4)/2
        ({"beta": 3.0}, -1.0, 0.1),  # ((0.1 − 0.6) + 0.7)/2
        ({"entropy_threshold": 1.0}, -1.0, -0.2),  # ((0.1 − 0.9) + (0.7 − 0.3))/2
        ({"entropy_threshold": 0.0}, -1.0, 0.4),
        ({"symmetric": True}, -1.0, -1.0),
    ],
)
def test_token_reward(settings, right, wrong):
    reward = token_reward(TOKEN_LOGP, TOKEN_ENTROPY, CRITICAL, CORRECT, **settings)
    np.testing.assert_allclose(reward, [right, wrong], rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_empty_critical_set_gives_zero(symmetric):
    empty = jnp.zeros((2, 3), bool)
    reward = token_reward(TOKEN_LOGP, TOKEN_ENTROPY, empty, CORRECT, symmetric=symmetric)
    np.testing.assert_array_equal(reward, [0.0, 0.0])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # Eq. 8, R_o = 1 and 0, IFD 0.4 both, R_token −1 and 0.3
        ({}, [1 + 0.5 * 0.4 + 0.1 * -1, 0 - 0.5 * 0.4 + 0.1 * 0.3]),  # 1.1, −0.17
        ({"lambda2": 0.0}, [1.2, -0.2]),  # +ifd
        ({"lambda1": 0.0}, [0.9, 0.03]),  # +token
        ({"lambda1": 0.0, "lambda2": 0.0}, [1.0, 0.0]),
        ({"lambda1": 0.1, "lambda2": 0.02}, [1.02, -0.034]),
    ],
)
def test_composite_reward(weights, expected):
    reward = composite_reward(
        jnp.array([1.0, 0.0]), jnp.array([0.4, 0.4]), jnp.array([-1.0, 0.3]), **weights
    )
    np.testing.assert_allclose(reward, expected, rtol=1e-5)


def test_large_dense_terms_can_reverse_the_outcomes():
    # right: 1 + 0.5·0 + 0.1·−3 = 0.7; wrong: 0 − 0.5·−2 + 0.1·1 = 1.1
    right, wrong = composite_reward(
        jnp.array([1.0, 0.0]), jnp.array([0.0, -2.0]), jnp.array([-3.0, 1.0])
    )
    assert wrong > right


def loops(correct, entropy, logp, logp_ref, lengths, ifd, settings):
    """R of every rollout by loops in float64; `settings` as in the config."""
    critical, token, composite = [], [], []
    for i, n in enumerate(lengths):
        size = -(-n * round(settings["top_fraction"] * 1000) // 1000)
        ranked = sorted(range(n), key=lambda t: (-entropy[i][t], t))
        uncertain = set(ranked[:size])
        drifted = {t for t in range(n) if abs(logp[i][t] - logp_ref[i][t]) >= settings["threshold"]}
        chosen = {
            "entropy": uncertain,
            "drift": drifted,
            "union": uncertain | drifted,
            "intersection": uncertain & drifted,
        }[settings["variant"]]
        terms = []
        for t in chosen:
            if correct[i] or settings["symmetric"]:
                terms.append(logp[i][t])
            else:
                hinge = max(0.0, settings["tau"] - entropy[i][t])
                terms.append(settings["alpha"] * entropy[i][t] - settings["beta"] * hinge)
        r_token = sum(terms) / len(terms) if terms else 0.0
        critical.append(chosen)
        token.append(r_token)
        composite.append(
            correct[i] + 0.5 * (2 * correct[i] - 1) * ifd[i] + 0.1 * r_token,
        )
    return critical, token, composite


@pytest.mark.parametrize("variant", CRITICAL_VARIANTS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_against_loops(variant, symmetric):
    rng = np.random.default_rng(0)
    rows, length = 12, 31
    lengths = rng.integers(0, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    draw = lambda low, high: rng.uniform(low, high, (rows, length)).astype(np.float32)  # noqa: E731
    entropy = np.round(draw(0, 2), 1)  # with ties
    logp, logp_ref = draw(-3, 0), draw(-3, 0)
    correct, ifd = rng.integers(0, 2, rows), rng.normal(size=rows).astype(np.float32)
    settings = {
        "top_fraction": 0.2,
        "threshold": 0.5,
        "variant": variant,
        "alpha": 0.7,
        "beta": 1.3,
        "tau": 0.6,
        "symmetric": symmetric,
    }
    expected = loops(correct, entropy, logp, logp_ref, lengths, ifd, settings)

    dirty = [jnp.asarray(np.where(mask, x, np.nan)) for x in (entropy, logp, logp_ref)]
    critical = critical_tokens(*dirty, jnp.asarray(mask), 0.2, 0.5, variant)
    outcome = jnp.asarray(correct, jnp.float32)
    token = token_reward(dirty[1], dirty[0], critical, outcome, 0.7, 1.3, 0.6, symmetric)
    composite = composite_reward(outcome, jnp.asarray(ifd), token)
    assert [set(np.flatnonzero(row)) for row in np.asarray(critical)] == expected[0]
    np.testing.assert_allclose(token, expected[1], atol=1e-5)
    np.testing.assert_allclose(composite, expected[2], atol=1e-5)
