"""The one table where a method is assembled: name -> reward, advantage, and what they need.

To add a method, write one pure function on floor 4, one entry in RECIPES, and one file in configs/. What
all methods share (clipping, reduction, KL, masks) are switches of the config's algorithm section.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import selection
from jaxrl_reason.advantages import confidence, entropy_shaping, erpo, group, progress
from jaxrl_reason.objectives import divergence, surrogate
from jaxrl_reason.rewards import ispo
from jaxrl_reason.rewards.overlong import overlong_penalty
from jaxrl_reason.types import Signals

# Optional fields of Signals; each has a producer in experience.py
PRODUCED = frozenset({"logp_ref", "answer_logp", "prompt_logp", "gold_logp"})
# What `log.all_signals` adds: the signals that diagnostics of any recipe are made of
DIAGNOSED = frozenset({"logp_ref", "answer_logp"})
# How prompts are chosen (generation.py): as they come, PREPO's window of perplexity, Scaf-GRPO's hints
SAMPLINGS = ("plain", "perplexity", "hints")


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of RECIPES: plain functions of (…, config), and what tells the method from others.

    reward(signals, config) -> ([B], terms), terms being the named parts of the reward for logging.
    advantage(reward, signals, config) -> [B] or [B,T].
    `needs`: optional fields of Signals, or a function of the config that names them. `fixed`: values of
    the algorithm section without which this is another method. `section`: its own section of the config.
    """

    reward: Callable
    advantage: Callable
    needs: frozenset[str] | Callable = frozenset()
    fixed: Mapping = dataclasses.field(default_factory=dict)
    section: str = ""
    sampling: str = "plain"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method bound to a config.

    reward(signals) and advantage(reward, signals) as in Method; tokens(signals) -> [B,T], those in the
    loss; loss(logp, entropy, batch) -> (scalar, metrics), differentiated in logp and entropy [B,T];
    `batch` holds logp_old, logp_ref, advantages, loss_mask and weights.
    """

    needs: frozenset[str]
    reward: Callable[[Signals], tuple[Float[Array, " B"], dict]]
    advantage: Callable[[Float[Array, " B"], Signals], Array]
    tokens: Callable[[Signals], Bool[Array, "B T"]]
    loss: Callable[[Array, Array, dict], tuple[Float[Array, ""], dict]]
    sampling: str


def build(config) -> Recipe:
    """The recipe a TrainConfig names. Raises ValueError when it needs what nothing produces."""
    method, algorithm = RECIPES[config.algorithm.recipe], config.algorithm
    needs = method.needs(config) if callable(method.needs) else method.needs
    if algorithm.beta or algorithm.beta_reward:
        needs = needs | {"logp_ref"}
    if config.log.all_signals:
        needs = needs | DIAGNOSED
    if needs - PRODUCED:
        raise ValueError(
            f"algorithm.recipe: {algorithm.recipe!r} needs {sorted(needs - PRODUCED)}, "
            f"which nothing produces; produced: {sorted(PRODUCED)}"
        )
    return Recipe(
        needs=needs,
        reward=functools.partial(_penalised_reward, method.reward, config),
        advantage=functools.partial(method.advantage, config=config),
        tokens=functools.partial(loss_tokens, config=config),
        loss=functools.partial(_clipped_loss, algorithm),
        sampling=method.sampling,
    )


# Rewards


def outcome_reward(signals: Signals, config) -> tuple[Float[Array, " B"], dict]:
    """R_o: `reward_correct` or `reward_wrong`."""
    right, wrong = config.algorithm.reward_correct, config.algorithm.reward_wrong
    return wrong + (right - wrong) * signals.correct, {}


def ispo_reward(signals: Signals, config) -> tuple[Float[Array, " B"], dict]:
    """ISPO's composite (rewards/ispo.py) with the weights and variants of the config's section."""
    section = config.ispo
    ifd = ispo.conditional_ifd(
        signals.answer_logp, signals.answer_logp_ablated, signals.answer_mask
    )
    critical = ispo.critical_tokens(
        signals.entropy,
        signals.logp,
        signals.logp_ref,
        signals.mask,
        section.top_fraction,
        section.drift_threshold,
        section.critical,
    )
    token = ispo.token_reward(
        signals.logp,
        signals.entropy,
        critical,
        signals.correct,
        section.alpha,
        section.beta,
        section.entropy_threshold,
        section.symmetric,
    )
    reward = ispo.composite_reward(signals.correct, ifd, token, section.lambda1, section.lambda2)
    return reward, {"ifd": ifd, "token": token, "critical": critical}


def _ispo_needs(config) -> frozenset[str]:
    drift = {"logp_ref"} if config.ispo.critical != "entropy" else set()
    return frozenset({"answer_logp"} | drift)


def _penalised_reward(method_reward, config, signals) -> tuple[Float[Array, " B"], dict]:
    """A method's reward less the penalties that are switched on."""
    reward, terms = method_reward(signals, config)
    algorithm = config.algorithm
    if algorithm.overlong_cache:
        lengths = jnp.sum(signals.mask.astype(jnp.int32), axis=1)
        longest = config.rollout.max_completion_length
        terms["overlong"] = overlong_penalty(lengths, longest, algorithm.overlong_cache)
        reward = reward + terms["overlong"]
    if algorithm.beta_reward:
        kl = divergence.in_reward(
            algorithm.kl_reward_estimator, signals.logp, signals.logp_ref, signals.mask
        )
        terms["kl_penalty"] = -algorithm.beta_reward * kl
        reward = reward + terms["kl_penalty"]
    return reward, terms


# Advantages


def group_advantage(reward: Float[Array, " B"], signals: Signals, config) -> Float[Array, " B"]:
    """Relative to the rollout's group (advantages/group.py), scaled as the config says."""
    algorithm = config.algorithm
    ddof, eps = group.PRESETS[algorithm.advantage_preset]
    return group.group_advantages(
        reward,
        config.rollout.num_generations,
        scale=algorithm.scale_rewards,
        ddof=ddof,
        eps=eps,
        std_floor=algorithm.sigma_min,
    )


def rloo_advantage(reward: Float[Array, " B"], signals: Signals, config) -> Float[Array, " B"]:
    """Against the mean of the group's other rollouts."""
    return group.leave_one_out_advantages(reward, config.rollout.num_generations)


def shaped(function: Callable, *fields: str) -> Callable:
    """Group advantages passed through a pure function:

    function(advantages [B], *those fields of Signals, num_generations, **the method's section).
    """

    def advantage(reward, signals, config):
        section = RECIPES[config.algorithm.recipe].section
        return function(
            group_advantage(reward, signals, config),
            *(getattr(signals, field) for field in fields),
            config.rollout.num_generations,
            **(dataclasses.asdict(getattr(config, section)) if section else {}),
        )

    return advantage


def _entropy_shaped(advantages_of) -> Callable:
    def advantage(reward, signals, config):
        return advantages_of(
            signals.correct,
            signals.entropy,
            signals.mask,
            config.rollout.num_generations,
            **dataclasses.asdict(config.gtpo),
        )

    return advantage


def pacr_advantage(reward: Float[Array, " B"], signals: Signals, config) -> Float[Array, "B T"]:
    """Group advantages plus the growth of confidence in the reference answer (advantages/progress.py)."""
    return progress.pacr_advantages(
        group_advantage(reward, signals, config),
        signals.gold_logp,
        signals.num_steps,
        signals.step_of_token,
        signals.mask,
        config.rollout.num_generations,
        config.pacr.gamma,
        config.pacr.outcome_weight,
        config.pacr.progress_weight,
    )


def progrpo_advantage(reward: Float[Array, " B"], signals: Signals, config) -> Float[Array, " B"]:
    """Group advantages plus prompt confidence less answer confidence (advantages/confidence.py)."""
    share, size = config.progrpo.fraction, config.rollout.num_generations
    of_prompt = confidence.low_probability_confidence(
        signals.prompt_logp, signals.prompt_mask, share
    )
    of_answer = confidence.low_probability_confidence(signals.logp, signals.mask, share)
    return confidence.progrpo_advantages(
        group_advantage(reward, signals, config),
        signals.correct,  # not the reward, which penalties may shift
        jnp.repeat(of_prompt, size),
        of_answer,
        size,
        config.progrpo.alpha,
    )


def prepo_advantage(reward: Float[Array, " B"], signals: Signals, config) -> Float[Array, " B"]:
    """Group advantages times each rollout's relative entropy."""
    weights = entropy_shaping.entropy_weights(signals.entropy, signals.mask)
    return group_advantage(reward, signals, config) * weights


# The table

_BY_OUTCOME_ALONE = {  # of the algorithm section, what an advantage made of outcomes never reads
    "reward_correct": 1.0, "reward_wrong": 0.0, "overlong_cache": 0, "beta_reward": 0.0,
    "scale_rewards": "std", "advantage_preset": "verl", "std_floor": "0",
}  # fmt: skip
_ZERO_ONE = {"reward_correct": 1.0, "reward_wrong": 0.0}

RECIPES = {
    "grpo": Method(outcome_reward, group_advantage),
    "dr_grpo": Method(
        outcome_reward, group_advantage, fixed={"scale_rewards": "none", "loss_type": "constant"}
    ),
    "dapo": Method(
        outcome_reward, group_advantage, fixed={"loss_type": "token_mean", "dynamic_sampling": True}
    ),
    "gspo": Method(
        outcome_reward, group_advantage, fixed={"importance_sampling_level": "sequence"}
    ),
    "rloo": Method(
        outcome_reward, rloo_advantage,
        fixed={"scale_rewards": "none", "advantage_preset": "verl", "std_floor": "0"},
    ),
    "high_entropy_tokens": Method(
        outcome_reward, group_advantage,
        fixed={"top_entropy_quantile": 0.2, "loss_type": "token_mean"},
    ),
    "ispo": Method(ispo_reward, group_advantage, _ispo_needs, fixed=_ZERO_ONE, section="ispo"),
    "erpo": Method(
        outcome_reward,
        shaped(erpo.erpo_advantages, "entropy", "logp", "logp_ref", "mask"),
        frozenset({"logp_ref"}), section="erpo",
    ),
    "gtpo": Method(
        outcome_reward, _entropy_shaped(entropy_shaping.gtpo_advantages),
        fixed=_BY_OUTCOME_ALONE, section="gtpo",
    ),
    "grpo_s": Method(
        outcome_reward, _entropy_shaped(entropy_shaping.grpo_s_advantages),
        fixed=_BY_OUTCOME_ALONE, section="gtpo",
    ),
    "pacr": Method(
        outcome_reward, pacr_advantage, frozenset({"gold_logp"}),
        fixed={"scale_rewards": "none", "loss_type": "constant"}, section="pacr",
    ),
    "progrpo": Method(
        outcome_reward, progrpo_advantage, frozenset({"prompt_logp"}), section="progrpo"
    ),
    "prepo": Method(outcome_reward, prepo_advantage, section="prepo", sampling="perplexity"),
    "scaf_grpo": Method(outcome_reward, group_advantage, section="scaf", sampling="hints"),
}  # fmt: skip


# The loss


def loss_tokens(signals: Signals, config) -> Bool[Array, "B T"]:
    """The tokens an optimiser step counts: all, or without cut rollouts, or the most uncertain ones.

    The quantile is taken in each mini-batch by itself, over its tokens that are left.
    """
    algorithm, mask = config.algorithm, signals.mask.astype(bool)
    if algorithm.mask_truncated_completions:
        mask = mask & ~signals.truncated[:, None]
    if algorithm.top_entropy_quantile == 1.0:
        return mask
    per_update = lambda x: jnp.split(x, algorithm.num_mini_batches)  # noqa: E731
    chosen = [
        selection.high_entropy_tokens(entropy, own, algorithm.top_entropy_quantile)
        for entropy, own in zip(per_update(signals.entropy), per_update(mask), strict=True)
    ]
    return jnp.concatenate(chosen)


def _clipped_loss(algorithm, logp, entropy, batch):
    return surrogate.policy_loss(
        logp,
        batch["logp_old"],
        batch["advantages"],
        batch["loss_mask"],
        epsilon=algorithm.epsilon,
        epsilon_high=algorithm.epsilon_high,
        weights=batch["weights"],
        beta=algorithm.beta,
        logp_ref=batch.get("logp_ref"),
        kl_estimator=algorithm.kl_estimator,
        importance_sampling_level=algorithm.importance_sampling_level,
        delta=algorithm.delta,
        entropy=entropy,
        entropy_coef=algorithm.entropy_coef,
    )


def broadcast_advantages(advantages: Array, mask: Array) -> Float[Array, "B T"]:
    """[B] or [B,T] advantages as [B,T], 0 where masked."""
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    return jnp.where(mask.astype(bool), advantages, 0.0)
