import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason import recipes
from jaxrl_reason.config import (
    AlgorithmSection,
    IspoSection,
    LearnerSection,
    RolloutSection,
    TrainConfig,
)
from jaxrl_reason.experience import credit
from jaxrl_reason.metrics import finalise
from jaxrl_reason.types import Signals

pytestmark = pytest.mark.usefixtures("strict_jax")

GROUP, LENGTH = 4, 10
OPTIONAL = (
    "logp_ref", "answer_logp", "answer_logp_ablated", "answer_mask", "prompt_logp", "prompt_mask",
    "gold_logp", "num_steps", "step_of_token",
)  # fmt: skip


def make_config(recipe="ispo", ispo=None, **algorithm):
    settings = recipes.RECIPES[recipe].fixed | algorithm
    return TrainConfig(
        rollout=RolloutSection(2, GROUP, LENGTH),
        algorithm=AlgorithmSection(recipe=recipe, **settings),
        ispo=ispo or IspoSection(),
        learner=LearnerSection(micro_batch_size=8),
    )


def make_signals(garbage=0.0, **fields):
    """Eight rollouts: a mixed group and one that is all wrong; `garbage` stands under the masks."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, LENGTH + 1, 8)
    mask = np.arange(LENGTH) < lengths[:, None]
    answer_mask = np.arange(3) < np.array([1, 2, 3, 0, 1, 1, 2, 3])[:, None]
    prompt_mask = np.arange(6) >= np.array([1, 3])[:, None]
    num_steps = np.array([1, 2, 3, 1, 2, 2, 3, 1])
    steps = np.arange(4) <= num_steps[:, None]
    draw = lambda m, low, high: jnp.where(m, rng.uniform(low, high, m.shape), garbage)  # noqa: E731
    values = {
        "mask": jnp.asarray(mask),
        "correct": jnp.array([1.0, 0.0, 1.0, 0.0] + [0.0] * 4),
        "logp": draw(mask, -3, 0),
        "entropy": draw(mask, 0, 2),
        "logp_sampler": draw(mask, -3, 0),
        "truncated": jnp.zeros(8, bool),
        "logp_ref": draw(mask, -3, 0),
        "answer_logp": draw(answer_mask, -1, 0),
        "answer_logp_ablated": draw(answer_mask, -3, 0),
        "answer_mask": jnp.asarray(answer_mask),
        "prompt_logp": draw(prompt_mask, -3, 0),
        "prompt_mask": jnp.asarray(prompt_mask),
        "gold_logp": draw(steps, -5, 0),
        "num_steps": jnp.asarray(num_steps),
        "step_of_token": jnp.asarray(np.minimum(np.arange(LENGTH) // 3, num_steps[:, None] - 1)),
    }
    return Signals(**values | fields)


def run(config, signals):
    return credit(config, recipes.build(config), signals)


def test_what_the_recipes_need():
    need = lambda **settings: recipes.build(make_config(**settings)).needs  # noqa: E731
    assert need(recipe="grpo") == set()
    assert need(recipe="grpo", beta=0.01) == {"logp_ref"}
    assert need(recipe="ispo") == {"logp_ref", "answer_logp"}
    assert need(recipe="ispo", ispo=IspoSection(critical="entropy")) == {"answer_logp"}
    assert need(recipe="ispo", ispo=IspoSection(critical="entropy"), beta=0.01) == {
        "logp_ref",
        "answer_logp",
    }


def test_a_need_that_nothing_produces_is_refused(monkeypatch):
    config = make_config("grpo")
    greedy = dataclasses.replace(recipes.RECIPES["grpo"], needs=frozenset({"value"}))
    monkeypatch.setitem(recipes.RECIPES, "grpo", greedy)
    with pytest.raises(ValueError, match=r"'grpo' needs \['value'\].*logp_ref"):
        recipes.build(config)


def test_grpo_by_hand():
    signals = make_signals(**dict.fromkeys(OPTIONAL))
    reward, terms, advantages, learn, metrics = run(make_config("grpo"), signals)
    np.testing.assert_array_equal(reward, signals.correct)
    assert terms == {}
    # 1, 0, 1, 0: mean 1/2, σ = √(4·0.25/3) = 0.57735; the second group is flat
    expected = np.array([0.5, -0.5, 0.5, -0.5, 0, 0, 0, 0]) / (0.57735027 + 1e-6)
    np.testing.assert_allclose(
        advantages, np.where(signals.mask, expected[:, None], 0.0), rtol=1e-5
    )
    mask = np.asarray(signals.mask)
    np.testing.assert_allclose(
        learn["weights"], mask / mask.sum(axis=1, keepdims=True) / 8, rtol=1e-6
    )
    assert not any(name.startswith("ispo/ifd") for name in metrics)


def test_ispo_without_its_terms_is_grpo():
    signals = make_signals()
    bare = IspoSection(lambda1=0.0, lambda2=0.0)
    _, _, advantages, _, _ = run(make_config("ispo", bare), signals)
    _, _, expected, _, _ = run(make_config("grpo"), signals)
    np.testing.assert_array_equal(advantages, expected)


@pytest.mark.parametrize("recipe", list(recipes.RECIPES))
def test_garbage_under_the_masks_changes_no_reward_advantage_or_metric(recipe):
    config = make_config(recipe, beta=0.01)
    clean = run(config, make_signals(garbage=0.0))
    for garbage in (jnp.nan, jnp.inf):
        dirty = run(config, make_signals(garbage=garbage))
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize("critical", ["intersection", "drift"])
def test_before_the_first_update_the_token_reward_is_zero(critical):
    """π_old = π_0: the reward of every rollout is its outcome and its IFD alone."""
    signals = make_signals()
    signals = dataclasses.replace(signals, logp_ref=signals.logp)
    config = make_config(ispo=IspoSection(critical=critical, drift_threshold=0.3))
    reward, terms, _, _, metrics = run(config, signals)
    np.testing.assert_array_equal(terms["token"], np.zeros(8))
    np.testing.assert_allclose(
        reward, signals.correct + 0.5 * (2 * signals.correct - 1) * terms["ifd"], rtol=1e-6
    )
    assert finalise(metrics)["ispo/critical_fraction"] == 0.0


def test_ispo_gives_an_all_wrong_group_a_gradient_and_the_floor_tames_it():
    signals = make_signals()
    literal = make_config("ispo")
    _, _, advantages, _, _ = run(literal, signals)
    assert np.abs(advantages[4:]).max() > 0.5
    # a hundredth of the weights: as strong as before without the floor, a hundredth with it
    small = IspoSection(lambda1=0.005, lambda2=0.001)
    _, _, same, _, _ = run(make_config("ispo", small), signals)
    np.testing.assert_allclose(same[4:], advantages[4:], rtol=1e-2, atol=1e-3)
    floored = make_config("ispo", std_floor="outcome")
    _, _, full, _, _ = run(floored, signals)
    _, _, hundredth, _, _ = run(make_config("ispo", small, std_floor="outcome"), signals)
    assert np.abs(hundredth[4:]).max() < 0.02 * np.abs(full[4:]).max() + 1e-6


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"lambda1": 0.0}, True),
        ({"lambda2": 0.0}, True),
        ({"critical": "union"}, True),
        ({"critical": "entropy"}, True),
        ({"critical": "drift"}, True),
        ({"symmetric": True}, True),
        ({"beta": 0.0}, True),
        ({"alpha": 2.0}, True),
        ({"entropy_threshold": 1.5}, True),
        ({"top_fraction": 0.5}, True),
        ({"drift_threshold": 2.0}, True),
        ({"ablated_stub": "x"}, False),  # acts before the signals
    ],
)
def test_every_switch_of_the_section_reaches_the_reward(settings, changes):
    signals = make_signals()
    base = IspoSection(top_fraction=0.6, entropy_threshold=1.0)
    other = dataclasses.replace(base, **settings)
    reward, _ = recipes.ispo_reward(signals, make_config(ispo=base))
    changed, _ = recipes.ispo_reward(signals, make_config(ispo=other))
    assert bool(jnp.any(reward != changed)) == changes


def test_the_advantage_follows_the_config():
    signals = make_signals()
    none = run(make_config("grpo", scale_rewards="none"), signals)[2]
    np.testing.assert_array_equal(none[:4, 0], [0.5, -0.5, 0.5, -0.5])
    numpy = run(make_config("grpo", advantage_preset="numpy"), signals)[2]
    np.testing.assert_allclose(numpy[:4, 0], [1, -1, 1, -1], rtol=1e-6)  # ddof 0: σ = 1/2
    floor = run(make_config("grpo", std_floor="2"), signals)[2]
    np.testing.assert_allclose(floor[:4, 0], [0.25, -0.25, 0.25, -0.25], rtol=1e-5)


@pytest.mark.parametrize(
    ("loss_type", "weight"),
    [("sequence_mean", None), ("token_mean", None), ("constant", 1 / (8 * LENGTH))],
)
def test_the_reduction_follows_the_config(loss_type, weight):
    signals = make_signals()
    weights = run(make_config("grpo", loss_type=loss_type), signals)[3]["weights"]
    np.testing.assert_allclose(
        weights.sum(), 1.0 if weight is None else weight * int(signals.mask.sum()), rtol=1e-5
    )
    if weight:
        np.testing.assert_allclose(weights, np.where(signals.mask, weight, 0.0), rtol=1e-6)


def test_the_loss_follows_the_config():
    """One token of ratio 2, Â = 1, log π_0 − log π = −1: −1.3 + 0.5·(e⁻¹ − (−1) − 1)."""
    config = make_config("grpo", epsilon=0.1, epsilon_high=0.3, beta=0.5)
    one = jnp.ones((1, 1))
    batch = {
        "logp_old": -jnp.log(2 * one),
        "advantages": one,
        "loss_mask": one.astype(bool),
        "weights": one,
        "logp_ref": -one,
    }
    loss = recipes.build(config).loss
    np.testing.assert_allclose(loss(0 * one, one, batch)[0], -1.3 + 0.5 * np.exp(-1), rtol=1e-5)
    k2 = recipes.build(make_config("grpo", beta=0.5, kl_estimator="k2", epsilon_high=0.3)).loss
    np.testing.assert_allclose(k2(0 * one, one, batch)[0], -1.3 + 0.5 * 0.5, rtol=1e-5)


def test_broadcast_advantages():
    mask = jnp.array([[True, False], [True, True]])
    for advantages in (jnp.array([2.0, 3.0]), jnp.array([[2.0, jnp.nan], [3.0, 3.0]])):
        np.testing.assert_array_equal(
            recipes.broadcast_advantages(advantages, mask), [[2.0, 0.0], [3.0, 3.0]]
        )


def test_what_each_method_needs():
    needs = {name: recipes.build(make_config(name)).needs for name in recipes.RECIPES}
    assert {name: set(n) for name, n in needs.items() if n} == {
        "ispo": {"logp_ref", "answer_logp"},
        "erpo": {"logp_ref"},
        "pacr": {"gold_logp"},
        "progrpo": {"prompt_logp"},
    }
    samplings = {name: recipes.build(make_config(name)).sampling for name in recipes.RECIPES}
    assert {name: s for name, s in samplings.items() if s != "plain"} == {
        "prepo": "perplexity",
        "scaf_grpo": "hints",
    }


def test_methods_by_hand():
    """Outcomes 1 0 1 0 | 0 0 0 0."""
    signals = make_signals()
    first = lambda name: np.asarray(run(make_config(name), signals)[2])[:4, 0]  # noqa: E731
    np.testing.assert_allclose(first("dr_grpo"), [0.5, -0.5, 0.5, -0.5])
    np.testing.assert_allclose(first("rloo"), np.array([0.5, -0.5, 0.5, -0.5]) * 4 / 3, rtol=1e-6)
    for name in ("dapo", "gspo", "high_entropy_tokens", "scaf_grpo"):
        np.testing.assert_array_equal(first(name), first("grpo"))
    # PREPO: times the mean entropy of the rollout over that of the batch
    own = (np.where(signals.mask, signals.entropy, 0).sum(1) / np.asarray(signals.mask).sum(1))[:8]
    np.testing.assert_allclose(first("prepo"), first("grpo") * (own / own.mean())[:4], rtol=1e-5)
    # ERPO: over the group's tokens sum 0 and variance 1
    erpo = np.asarray(run(make_config("erpo"), signals)[2])[:4][np.asarray(signals.mask)[:4]]
    np.testing.assert_allclose([erpo.mean(), erpo.std(ddof=1)], [0.0, 1.0], atol=1e-6)


def test_only_the_most_uncertain_tokens_are_in_the_loss():
    signals = make_signals()
    learn = run(make_config("high_entropy_tokens"), signals)[3]
    total = int(np.asarray(signals.mask).sum())
    count = -(-total // 5)
    chosen = np.asarray(learn["loss_mask"])
    assert chosen.sum() == count
    entropy = np.asarray(signals.entropy)
    valid = np.asarray(signals.mask)
    assert entropy[chosen].min() > entropy[valid & ~chosen].max()
    # the mean over those tokens, in numerator and denominator
    np.testing.assert_allclose(learn["weights"], np.where(chosen, 1 / count, 0.0), rtol=1e-6)


def test_cut_rollouts_out_of_the_loss():
    signals = make_signals(truncated=jnp.arange(8) % 2 == 0)
    learn = run(make_config("grpo", mask_truncated_completions=True), signals)[3]
    np.testing.assert_array_equal(np.asarray(learn["loss_mask"]).any(axis=1), np.arange(8) % 2 == 1)
    np.testing.assert_allclose(np.asarray(learn["weights"]).sum(axis=1)[1::2], 1 / 4, rtol=1e-6)


@pytest.mark.parametrize("loss_type", ["sequence_mean", "token_mean"])
def test_each_mini_batch_has_weights_of_its_own(loss_type):
    signals = make_signals()
    config = make_config("grpo", loss_type=loss_type)
    algorithm = dataclasses.replace(config.algorithm, num_mini_batches=2)
    learner = LearnerSection(micro_batch_size=4)
    config = dataclasses.replace(config, algorithm=algorithm, learner=learner)
    learn = run(config, signals)[3]
    weights = np.asarray(learn["weights"]).reshape(2, -1)
    np.testing.assert_allclose(weights.sum(axis=1), [1.0, 1.0], rtol=1e-5)


def test_outcome_values_and_penalties_reach_the_reward():
    signals = make_signals()
    correct = np.asarray(signals.correct)
    reward = lambda **settings: np.asarray(run(make_config("grpo", **settings), signals)[0])  # noqa: E731
    np.testing.assert_array_equal(reward(reward_wrong=-1.0), 2 * correct - 1)
    lengths = np.asarray(signals.mask).sum(axis=1)
    # L_max 10, cache 4: (10 − 4 − L)/4, so 0 up to 6 tokens and −1 at 10
    expected = correct + np.clip((6 - lengths) / 4, -1, 0)
    np.testing.assert_allclose(reward(overlong_cache=4), expected, rtol=1e-6)
    log_ratio = np.where(signals.mask, signals.logp - signals.logp_ref, 0.0)
    np.testing.assert_allclose(
        reward(beta_reward=0.1), correct - 0.1 * log_ratio.sum(axis=1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        reward(beta_reward=0.1, kl_reward_estimator="k2"),
        correct - 0.1 * (log_ratio**2).sum(axis=1) / 2,
        rtol=1e-5,
        atol=1e-6,
    )


def test_truncated_importance_scales_the_advantages_that_are_learnt_alone():
    signals = make_signals()
    config = make_config("grpo", importance_sampling_cap=1.5)
    _, _, advantages, learn, metrics = run(config, signals)
    factor = np.minimum(np.exp(np.asarray(signals.logp - signals.logp_sampler)), 1.5)
    expected = np.where(signals.mask, factor * np.asarray(advantages), 0.0)
    np.testing.assert_allclose(learn["advantages"], expected, rtol=1e-5)
    np.testing.assert_array_equal(advantages, run(make_config("grpo"), signals)[2])
    mean = finalise(metrics)["sampling/importance_sampling_ratio/mean"]
    np.testing.assert_allclose(mean, factor[np.asarray(signals.mask)].mean(), rtol=1e-5)


def one_token_loss(ratio, advantage, entropy=1.0, **settings):
    one = jnp.ones((1, 1))
    batch = {
        "logp_old": -jnp.log(ratio * one),
        "advantages": advantage * one,
        "loss_mask": one.astype(bool),
        "weights": one,
    }
    return float(recipes.build(make_config(**settings)).loss(0 * one, entropy * one, batch)[0])


def test_switches_of_the_loss():
    # ρ = 5, Â = −1: 5 unbounded, 3 with a dual clip of 3
    assert one_token_loss(5.0, -1.0, recipe="grpo") == pytest.approx(5.0)
    assert one_token_loss(5.0, -1.0, recipe="grpo", delta=3.0) == pytest.approx(3.0)
    assert one_token_loss(1.0, 0.0, 0.7, recipe="grpo", entropy_coef=0.1) == pytest.approx(-0.07)
    # GSPO with one token is GRPO
    for level in ("token", "sequence"):
        got = one_token_loss(2.0, 1.0, recipe="grpo", importance_sampling_level=level)
        assert got == pytest.approx(-1.28)


def test_the_sequence_ratio_follows_the_config():
    """Two tokens of ratios 4 and 1: as a sequence both have ratio 2."""
    batch = {
        "logp_old": jnp.log(jnp.array([[0.25, 1.0]])),
        "advantages": -jnp.ones((1, 2)),
        "loss_mask": jnp.ones((1, 2), bool),
        "weights": jnp.full((1, 2), 0.5),
    }
    loss = lambda name: recipes.build(make_config(name)).loss(jnp.zeros((1, 2)), None, batch)[0]  # noqa: E731
    np.testing.assert_allclose([loss("grpo"), loss("gspo")], [2.5, 2.0], rtol=1e-6)
