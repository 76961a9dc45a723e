"""The one table where a method is assembled: name -> reward, advantage, loss, and what they need.

To add a method, write one pure function on floor 4, and one entry here.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_reason.advantages import group
from jaxrl_reason.objectives import surrogate
from jaxrl_reason.rewards import ispo
from jaxrl_reason.types import Signals

# Optional fields of Signals; each has a producer in experience.py
PRODUCED = frozenset({"logp_ref", "answer_logp"})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One method.

    reward(signals) -> ([B], terms), terms being the named parts of the reward for logging.
    advantage(reward, signals) -> [B] or [B,T].
    loss(logp, batch) -> (scalar, metrics), differentiated in logp [B,T]; `batch` holds logp_old,
    logp_ref, advantages, mask and weights.
    """

    needs: frozenset[str]
    reward: Callable[[Signals], tuple[Float[Array, " B"], dict]]
    advantage: Callable[[Float[Array, " B"], Signals], Array]
    loss: Callable[[Float[Array, "B T"], dict], tuple[Float[Array, ""], dict]]


def build(config) -> Recipe:
    """The recipe a TrainConfig names. Raises ValueError when it needs what nothing produces."""
    recipe = RECIPES[config.algorithm.recipe](config)
    if config.algorithm.beta:
        recipe = dataclasses.replace(recipe, needs=recipe.needs | {"logp_ref"})
    if config.log.all_signals:
        recipe = dataclasses.replace(recipe, needs=recipe.needs | PRODUCED)
    if recipe.needs - PRODUCED:
        raise ValueError(
            f"algorithm.recipe: {config.algorithm.recipe!r} needs {sorted(recipe.needs - PRODUCED)}, "
            f"which nothing produces; produced: {sorted(PRODUCED)}"
        )
    return recipe


def _grpo(config) -> Recipe:
    return Recipe(frozenset(), outcome_reward, _group_advantage(config), _clipped_loss(config))


def _ispo(config) -> Recipe:
    section = config.ispo
    needs = {"answer_logp"} | ({"logp_ref"} if section.critical != "entropy" else set())
    reward = functools.partial(ispo_reward, section=section)
    return Recipe(frozenset(needs), reward, _group_advantage(config), _clipped_loss(config))


RECIPES = {"grpo": _grpo, "ispo": _ispo}


def outcome_reward(signals: Signals) -> tuple[Float[Array, " B"], dict]:
    """R = R_o."""
    return signals.correct, {}


def ispo_reward(signals: Signals, section) -> tuple[Float[Array, " B"], dict]:
    """ISPO's composite (rewards/ispo.py) with the weights and variants of the config's section."""
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


def _group_advantage(config):
    algorithm = config.algorithm
    ddof, eps = group.PRESETS[algorithm.advantage_preset]

    def advantage(reward, signals):
        return group.group_advantages(
            reward,
            config.rollout.num_generations,
            scale=algorithm.scale_rewards,
            ddof=ddof,
            eps=eps,
            std_floor=algorithm.sigma_min,
        )

    return advantage


def _clipped_loss(config):
    algorithm = config.algorithm

    def loss(logp, batch):
        return surrogate.policy_loss(
            logp,
            batch["logp_old"],
            batch["advantages"],
            batch["mask"],
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high,
            weights=batch["weights"],
            beta=algorithm.beta,
            logp_ref=batch.get("logp_ref"),
            kl_estimator=algorithm.kl_estimator,
        )

    return loss


def broadcast_advantages(advantages: Array, mask: Array) -> Float[Array, "B T"]:
    """[B] or [B,T] advantages as [B,T], 0 where masked."""
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    return jnp.where(mask.astype(bool), advantages, 0.0)
