"""ERPO's token advantages (Yu et al. 2026, arXiv:2603.28204, §4, Algorithm 1).

    W = sigmoid(γ·(H − μ_H)/(σ_H + δ))                                          (Eq. 8)
    s = β_p·(log π_old − log π_0),   s̃ = (s − μ_k)/(σ_k + δ) in position bucket k   (Eq. 7, 9)
    Ψ = σ_target·W·sgn(Â)·s̃ / (std(Ψ over active tokens) + δ)                    (Eq. 10)
    Â_t = z-score over the group's tokens of (Â + η·Ψ)                           (Eq. 10, 16)

All statistics are those of one group, ddof 1. Inputs are stop-gradient numbers, nats. Where the paper is
silent: σ_target = 1; a bucket of fewer than two tokens, or with σ_k < 1e-5, gives 0 (rescaling would blow
its rounding noise up); |Â| ≤ 1e-9 counts as sign 0; the closing z-score has no δ, so that a group's
advantages have sum 0 and variance 1. With π_old = π_0, Ψ is 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason import masked
from jaxrl_reason.advantages import group

FLAT_BUCKET = 1e-5
ZERO_ADVANTAGE = 1e-9


def erpo_advantages(
    advantages: Float[Array, " B"],
    entropy: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    num_generations: int,
    beta_progress: float = 0.1,
    gamma: float = 5.0,
    num_buckets: int = 10,
    eta: float = 0.2,
    sigma_target: float = 1.0,
    delta: float = 1e-4,
) -> Float[Array, "B T"]:
    """Token advantages from the group advantages [B]; 0 where masked and in groups without variance."""
    mask = mask.astype(bool)
    rows = lambda x: x.reshape(mask.shape[0] // num_generations, -1)  # noqa: E731  [P, G·T]
    valid = rows(mask)
    gate = entropy_gate(rows(entropy), valid, gamma, delta)
    progress = beta_progress * jnp.where(mask, logp - logp_ref, 0.0)
    buckets = rows(position_buckets(mask, num_buckets))
    progress = bucket_zscore(rows(progress), buckets, valid, num_buckets, delta)
    sign = jnp.where(jnp.abs(advantages) <= ZERO_ADVANTAGE, 0.0, jnp.sign(advantages))
    sign = rows(jnp.broadcast_to(sign[:, None], mask.shape))
    active = valid & (sign != 0.0)
    shaped = gate * sign * progress
    spread = masked.masked_std(shaped, active, axis=1)[:, None]
    enough = jnp.sum(active.astype(jnp.int32), axis=1, keepdims=True) >= 2
    shaped = jnp.where(enough, sigma_target * shaped / (spread + delta), 0.0)
    base = rows(jnp.broadcast_to(advantages[:, None], mask.shape))
    return group.zscore(base + eta * shaped, valid).reshape(mask.shape)


def entropy_gate(
    entropy: Float[Array, "P N"], valid: Bool[Array, "P N"], gamma: float, delta: float
) -> Float[Array, "P N"]:
    """W in (0, 1): how uncertain a token is among those of its group (Eq. 8); 0 where not valid."""
    entropy = jnp.where(valid, entropy, 0.0)
    mean = masked.masked_mean(entropy, valid, axis=1)[:, None]
    std = masked.masked_std(entropy, valid, axis=1)[:, None]
    return jnp.where(valid, jax.nn.sigmoid(gamma * (entropy - mean) / (std + delta)), 0.0)


def position_buckets(mask: Bool[Array, "B T"], num_buckets: int) -> Int[Array, "B T"]:
    """min(⌊t·K/n⌋, K − 1) of token t = 1 … n of each row, in integers; 0 where masked (§4.3)."""
    length = jnp.sum(mask.astype(jnp.int32), axis=1, keepdims=True)
    position = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)[None]
    bucket = position * jnp.int32(num_buckets) // jnp.maximum(length, 1)
    return jnp.where(mask.astype(bool), jnp.minimum(bucket, num_buckets - 1), 0)


def bucket_zscore(
    x: Float[Array, "P N"],
    buckets: Int[Array, "P N"],
    valid: Bool[Array, "P N"],
    num_buckets: int,
    delta: float,
) -> Float[Array, "P N"]:
    """(x − μ_k)/(σ_k + δ) within group and bucket (Eq. 9); 0 in a flat bucket or where not valid."""
    groups = x.shape[0]
    segment = (buckets + num_buckets * jnp.arange(groups, dtype=jnp.int32)[:, None]).reshape(-1)
    weight = valid.reshape(-1).astype(jnp.float32)
    x = jnp.where(valid, x, 0.0).reshape(-1)

    def total(values):
        return jax.ops.segment_sum(values * weight, segment, groups * num_buckets)

    count = total(jnp.ones_like(x))
    mean = total(x) / jnp.maximum(count, 1.0)
    centred = x - mean[segment]
    std = jnp.sqrt(total(centred**2) / jnp.maximum(count - 1.0, 1.0))
    flat = ((count < 2.0) | (std < FLAT_BUCKET))[segment]
    scaled = jnp.where(flat, 0.0, centred / (std[segment] + delta))
    return jnp.where(valid, scaled.reshape(groups, -1), 0.0)
