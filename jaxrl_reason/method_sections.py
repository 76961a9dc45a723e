"""Sections of a configuration that say which method is trained, and the numbers of each method.

A method's own section may be changed only where its recipe is chosen; defaults are the papers' values.
"""

import dataclasses
import re

from jaxrl_reason.validate import at_least, one_of, require


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """Which recipe, and the switches that every recipe shares."""

    recipe: str = "ispo"
    # reward
    reward_correct: float = 1.0  # outcome values (DAPO itself uses 1 and −1)
    reward_wrong: float = 0.0
    overlong_cache: int = 0  # tokens over which the soft overlong punishment grows; 0: none
    beta_reward: float = 0.0  # weight of Σ_t KL estimate, taken off the reward
    kl_reward_estimator: str = "k1"  # or k2, k3
    # advantage
    scale_rewards: str = "std"  # "std" (GRPO) or "none" (Dr.GRPO)
    advantage_preset: str = "verl"  # whose ddof and eps: verl, trl, dr_grpo_repo, numpy
    std_floor: str = "0"  # σ_min: a number, or "outcome" for 1/√G
    # which groups and tokens
    dynamic_sampling: bool = False  # draw on until the batch is full of mixed groups (DAPO)
    max_resample: int = 3  # further draws a step
    # share of the batch's tokens in the loss, most uncertain first
    top_entropy_quantile: float = 1.0
    mask_truncated_completions: bool = False  # rollouts without an end token out of the loss
    # objective
    num_iterations: int = 1  # passes over a batch of rollouts
    num_mini_batches: int = 1  # optimiser steps in each; with 1 and 1 the ratio is 1, nothing clips
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    delta: float = 0.0  # dual clip: bound of the ratio where Â < 0, e.g. 3; 0: none
    importance_sampling_level: str = "token"  # or "sequence" (GSPO)
    importance_sampling_cap: float = 0.0  # truncated π_old/π_sampler; 0: not applied
    loss_type: str = "sequence_mean"  # or token_mean (DAPO), constant (Dr.GRPO)
    beta: float = 0.0  # weight of KL(π‖π_0) in the loss
    kl_estimator: str = "k3"  # or k2
    entropy_coef: float = 0.0  # entropy bonus per token, nats

    def __post_init__(self):
        from jaxrl_reason.advantages import group
        from jaxrl_reason.objectives import divergence, surrogate

        one_of("algorithm.scale_rewards", self.scale_rewards, group.SCALES)
        one_of("algorithm.advantage_preset", self.advantage_preset, tuple(group.PRESETS))
        one_of("algorithm.loss_type", self.loss_type, surrogate.LOSS_TYPES)
        one_of("algorithm.kl_estimator", self.kl_estimator, ("k2", "k3"))
        one_of("algorithm.kl_reward_estimator", self.kl_reward_estimator, divergence.ESTIMATORS)
        level = self.importance_sampling_level
        one_of("algorithm.importance_sampling_level", level, surrogate.IMPORTANCE_LEVELS)
        require(
            "algorithm.std_floor", self.std_floor, self.sigma_min is not None, "'outcome' or >= 0"
        )
        if self.scale_rewards == "none":
            floor, preset = self.std_floor, self.advantage_preset
            require("algorithm.std_floor", floor, not self.sigma_min, "'0' without a scale")
            require(
                "algorithm.advantage_preset", preset, preset == "verl", "'verl' without a scale"
            )
        for key, value, switch in (
            ("max_resample", 3, "dynamic_sampling"),
            ("kl_estimator", "k3", "beta"),
            ("kl_reward_estimator", "k1", "beta_reward"),
        ):
            found = getattr(self, key)
            read = getattr(self, switch) or found == value
            require(f"algorithm.{key}", found, read, f"set with algorithm.{switch}")
        at_least("algorithm", self, beta=0, beta_reward=0, entropy_coef=0, overlong_cache=0)
        at_least("algorithm", self, num_iterations=1, num_mini_batches=1, max_resample=1)
        at_least("algorithm", self, importance_sampling_cap=0)
        require("algorithm.epsilon", self.epsilon, 0 < self.epsilon < 1, "in (0, 1)")
        require("algorithm.epsilon_high", self.epsilon_high, self.epsilon_high > 0, "> 0")
        bound = 1 + self.epsilon_high
        require(
            "algorithm.delta", self.delta, not self.delta or self.delta > bound, f"0 or > {bound}"
        )
        share = self.top_entropy_quantile
        require("algorithm.top_entropy_quantile", share, 0 < share <= 1, "in (0, 1]")
        if share < 1:
            require(
                "algorithm.top_entropy_quantile", share, level == "token",
                "1.0 with sequence ratios, which are means over all tokens",
            )  # fmt: skip
        require(
            "algorithm.reward_correct", self.reward_correct,
            self.reward_correct > self.reward_wrong, f"> algorithm.reward_wrong {self.reward_wrong}",
        )  # fmt: skip

    @property
    def sigma_min(self) -> float | str | None:
        """`std_floor` as `group_advantages` takes it; None if it is neither."""
        if self.std_floor == "outcome":
            return "outcome"
        try:
            value = float(self.std_floor)
        except ValueError:
            return None
        return value if 0 <= value < float("inf") else None

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on each batch of rollouts."""
        return self.num_iterations * self.num_mini_batches


@dataclasses.dataclass(frozen=True)
class IspoSection:
    """ISPO's weights and sets; the defaults are the paper's (appendix A.2)."""

    lambda1: float = 0.5  # weight of the conditional IFD
    lambda2: float = 0.1  # weight of the token reward
    top_fraction: float = 0.1  # share of a rollout's tokens in 𝒜
    drift_threshold: float = 0.3  # τ_Δ, nats
    critical: str = "intersection"  # or entropy, drift, union (Table 2b)
    alpha: float = 1.0
    beta: float = 1.0  # hinge weight; 0 is "β = 0" of Table 2c
    entropy_threshold: float = 0.3  # τ_H, nats
    symmetric: bool = False  # the correct rollouts' form for all (Table 2c)
    ablated_stub: str = ""  # "": the answer's opening as sampled; else this text

    def __post_init__(self):
        from jaxrl_reason.rewards.ispo import CRITICAL_VARIANTS

        one_of("ispo.critical", self.critical, CRITICAL_VARIANTS)
        require("ispo.top_fraction", self.top_fraction, 0 < self.top_fraction <= 1, "in (0, 1]")
        at_least("ispo", self, drift_threshold=0, entropy_threshold=0)


@dataclasses.dataclass(frozen=True)
class ErpoSection:
    """ERPO's token advantages (advantages/erpo.py); σ_target and K are ours."""

    beta_progress: float = 0.1  # β_p of the progress signal
    gamma: float = 5.0  # steepness of the entropy gate
    num_buckets: int = 10  # K, windows of relative position
    eta: float = 0.2  # weight of the process term
    sigma_target: float = 1.0  # its standard deviation over a group's active tokens

    def __post_init__(self):
        at_least("erpo", self, num_buckets=1, eta=0, gamma=0)
        for name in ("beta_progress", "sigma_target"):
            require(f"erpo.{name}", getattr(self, name), getattr(self, name) > 0, "> 0")


@dataclasses.dataclass(frozen=True)
class GtpoSection:
    """GTPO's and GRPO-S's reward weights (advantages/entropy_shaping.py)."""

    alpha1: float = 1.0  # outcome
    alpha2: float = 0.1  # entropy share
    separate: bool = False  # a z-score per outcome, which cancels alpha1

    def __post_init__(self):
        at_least("gtpo", self, alpha1=0, alpha2=0)


@dataclasses.dataclass(frozen=True)
class PacrSection:
    """PACR's progress credit (advantages/progress.py) and how responses are cut into steps."""

    gamma: float = 1.0
    outcome_weight: float = 1.0
    progress_weight: float = 0.5
    step_end: str = r"\n\s*\n|[.!?](?=\s)"  # regular expression: blank lines and sentence ends
    max_steps: int = 16  # later steps are joined to the last

    def __post_init__(self):
        require("pacr.gamma", self.gamma, 0 <= self.gamma <= 1, "in [0, 1]")
        at_least("pacr", self, outcome_weight=0, progress_weight=0, max_steps=1)
        try:
            empty = re.compile(self.step_end).match("")
        except re.error as error:
            raise ValueError(f"pacr.step_end: {self.step_end!r}: {error}") from None
        require("pacr.step_end", self.step_end, not empty, "an expression that matches some text")


@dataclasses.dataclass(frozen=True)
class ProgrpoSection:
    """ProGRPO's confidence term (advantages/confidence.py)."""

    alpha: float = 0.3
    fraction: float = 0.2  # least likely tokens that make up a confidence

    def __post_init__(self):
        require("progrpo.fraction", self.fraction, 0 < self.fraction <= 1, "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class PrepoSection:
    """PREPO's schedule of prompts by perplexity (selection.py)."""

    candidates: int = 4  # prompts drawn for each one trained on

    def __post_init__(self):
        at_least("prepo", self, candidates=1)


@dataclasses.dataclass(frozen=True)
class ScafSection:
    """Scaf-GRPO's hints for groups that are all wrong (selection.py). The data set gives the hints."""

    warmup_steps: int = 10  # steps without hints
    max_hints: int = 3  # levels tried, from the weakest
    template: str = "{problem}\n\nHint: {hint}"  # the problem as a hinted prompt shows it

    def __post_init__(self):
        at_least("scaf", self, warmup_steps=0, max_hints=1)
        require("scaf.template", self.template, "{hint}" in self.template, "a text with {hint}")


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters on all linear layers; the base is frozen."""

    rank: int = 0  # 0: train all parameters
    alpha: float = 64.0  # the adapters' output is scaled by alpha/rank

    def __post_init__(self):
        at_least("lora", self, rank=0)
        require("lora.alpha", self.alpha, self.alpha > 0, "> 0")
