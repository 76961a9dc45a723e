"""Group-relative advantages (GRPO, Shao et al. 2024, and its normalisations).

Â_i = (R_i − μ) / (max(σ, σ_min) + eps) over the G rollouts of one prompt. A group with
σ < 1e-6·max(1, max|R|), or of one rollout, has advantage exactly 0: float32 residue would otherwise be
blown up to unit size (seven rewards of 100.3 have σ = 8e-6).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked

SCALES = ("std", "none")
# Whose arithmetic: (ddof, eps)
PRESETS = {"verl": (1, 1e-6), "trl": (1, 1e-4), "dr_grpo_repo": (1, 1e-8), "numpy": (0, 1e-8)}
RESIDUE = 1e-6


class GroupStats(NamedTuple):
    """Per group, [P,1]: mean, standard deviation, and whether all its values agree."""

    mean: Float[Array, "P 1"]
    std: Float[Array, "P 1"]
    flat: Bool[Array, "P 1"]


def group_stats(grouped: Float[Array, "P G"], ddof: int = 1) -> GroupStats:
    """Two-pass statistics of each row, and the floor under which a row counts as constant."""
    size = grouped.shape[1]
    mean = jnp.mean(grouped, axis=1, keepdims=True)
    variance = jnp.sum((grouped - mean) ** 2, axis=1, keepdims=True) / max(size - ddof, 1)
    std = jnp.sqrt(variance)
    floor = RESIDUE * jnp.maximum(1.0, jnp.max(jnp.abs(grouped), axis=1, keepdims=True))
    return GroupStats(mean, std, (std < floor) | (size == 1))


def group_advantages(
    reward: Float[Array, " B"],
    num_generations: int,
    scale: str = "std",
    ddof: int = 1,
    eps: float = 1e-6,
    std_floor: float | str = 0.0,
) -> Float[Array, " B"]:
    """Advantage of every rollout relative to its group of G adjacent rows; float32.

    `scale`: "std" divides by the group's standard deviation, "none" (Dr.GRPO) does not. `std_floor`
    is σ_min; "outcome" means the smallest σ that a 0/1 outcome can give a mixed group (1/√G at ddof 1):
    mixed groups are unchanged, and groups whose outcomes all agree learn in proportion to the weight of
    their dense terms instead of at full strength. Raises ValueError for an unknown scale or a batch
    that is no multiple of G.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: {scale!r} is not one of {SCALES}")
    reward = jnp.asarray(reward, jnp.float32)
    if num_generations < 1 or reward.shape[0] % num_generations:
        raise ValueError(
            f"{reward.shape[0]} rewards are no multiple of num_generations {num_generations}"
        )
    grouped = reward.reshape(-1, num_generations)
    stats = group_stats(grouped, ddof)
    advantage = grouped - stats.mean
    if scale == "std":
        sigma_min = resolve_std_floor(std_floor, num_generations, ddof)
        # where, not eps alone: a flat group with eps 0 would divide by zero
        sigma = jnp.where(stats.flat, 1.0, jnp.maximum(stats.std, sigma_min))
        advantage = advantage / (sigma + eps)
    return jnp.where(stats.flat, 0.0, advantage).reshape(-1)


def leave_one_out_advantages(
    reward: Float[Array, " B"], num_generations: int
) -> Float[Array, " B"]:
    """RLOO (Ahmadian et al. 2024): Â_i = R_i − mean of the other G − 1 rewards = (R_i − μ)·G/(G − 1).

    A group of one, or of equal rewards, has advantage exactly 0.
    """
    centred = group_advantages(reward, num_generations, scale="none")
    return centred * (num_generations / max(num_generations - 1, 1))


def zscore(x: Float[Array, "P N"], valid: Bool[Array, "P N"]) -> Float[Array, "P N"]:
    """(x − μ)/σ of each row over its valid entries (ddof 1, no eps), 0 elsewhere.

    A row of fewer than two valid entries, or with σ under the residue floor, is exactly 0.
    """
    x = jnp.where(valid, x, 0.0)
    mean = masked.masked_mean(x, valid, axis=1)[:, None]
    centred = jnp.where(valid, x - mean, 0.0)
    std = masked.masked_std(x, valid, axis=1)[:, None]
    floor = RESIDUE * jnp.maximum(1.0, jnp.max(jnp.abs(x), axis=1, keepdims=True))
    flat = std < floor
    return jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, std))


def resolve_std_floor(std_floor: float | str, num_generations: int, ddof: int = 1) -> float:
    """σ_min of a config value: a number, or "outcome" for one right (or wrong) rollout among G.

    Its variance is (1/G)(1 − 1/G)·G/(G − ddof): 1/G at ddof 1.
    """
    if std_floor == "outcome":
        g = num_generations
        return math.sqrt((g - 1) / (g * max(g - ddof, 1)))
    if isinstance(std_floor, str) or not std_floor >= 0:
        raise ValueError(f"std_floor: {std_floor!r} is neither 'outcome' nor a number >= 0")
    return float(std_floor)
