"""PACR, dense (Yoon et al. 2025, arXiv:2510.22255, as interpreted): credit for growing confidence.

    c_k = log π(gold | q, first k steps),  g_k = c_k − c_{k−1},  G_k = Σ_{j ≥ k} γ^{j−k}·g_j
    A = λ_O·Â + λ_P·(G̃_k − mean of G̃ over the group's steps),   G̃ = min-max of G over the group's steps

on the tokens of step k. The paper's γ, λ_O, λ_P were not at hand. Stop-gradient numbers, nats.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason import masked
from jaxrl_reason.advantages.group import RESIDUE


def pacr_advantages(
    advantages: Float[Array, " B"],
    gold_logp: Float[Array, "B K1"],
    num_steps: Int[Array, " B"],
    step_of_token: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    num_generations: int,
    gamma: float = 1.0,
    outcome_weight: float = 1.0,
    progress_weight: float = 0.5,
) -> Float[Array, "B T"]:
    """Token advantages; `gold_logp[b, k]` is c_k for k = 0 … num_steps[b], what follows is ignored.

    `step_of_token` counts from 0 to num_steps − 1. A group whose G are all equal has progress 0; rows
    without tokens, or without steps, count nowhere.
    """
    mask = mask.astype(bool)
    steps = gold_logp.shape[1] - 1
    alive = jnp.any(mask, axis=1)[:, None]
    real = (jnp.arange(steps, dtype=jnp.int32)[None] < num_steps[:, None]) & alive
    gain = jnp.where(real, gold_logp[:, 1:] - gold_logp[:, :-1], 0.0)

    def back(later, now):
        total = now + gamma * later
        return total, total

    _, to_go = jax.lax.scan(back, jnp.zeros_like(gain[:, 0]), gain.T, reverse=True)
    progress = _centred_min_max(
        to_go.T.reshape(-1, num_generations * steps), real.reshape(-1, num_generations * steps)
    ).reshape(real.shape)
    per_token = jnp.take_along_axis(progress, jnp.clip(step_of_token, 0, steps - 1), axis=1)
    total = outcome_weight * advantages[:, None] + progress_weight * per_token
    return jnp.where(mask, total, 0.0)


def _centred_min_max(x, valid):
    """Min-max over the valid entries of each row, less their mean; 0 for a flat row."""
    low = jnp.min(jnp.where(valid, x, jnp.inf), axis=1, keepdims=True)
    high = jnp.max(jnp.where(valid, x, -jnp.inf), axis=1, keepdims=True)
    spread = high - low
    size = jnp.max(jnp.where(valid, jnp.abs(x), 0.0), axis=1, keepdims=True)
    flat = ~(spread > RESIDUE * jnp.maximum(1.0, size))  # also a row without valid entries
    scaled = jnp.where(
        valid & ~flat, (x - jnp.where(flat, 0.0, low)) / jnp.where(flat, 1.0, spread), 0.0
    )
    mean = masked.masked_mean(scaled, valid, axis=1)[:, None]
    return jnp.where(valid, scaled - mean, 0.0)
