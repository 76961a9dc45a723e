"""The clipped surrogate of PPO/GRPO, its reductions, and the weights that make accumulation exact.

    ρ = exp(log π_θ − log π_old),   loss_t = −min(ρ·Â, clip(ρ, 1−ε, 1+ε_high)·Â)

A reduction is a weight per token, computed once over the whole optimiser batch: the loss is Σ w·loss_t,
so that micro-batches simply add up and gradient accumulation cannot change the gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked
from jaxrl_reason.objectives import divergence

LOSS_TYPES = ("sequence_mean", "token_mean", "constant")
IMPORTANCE_LEVELS = ("token", "sequence")
LOG_RATIO_CLAMP = 20.0

Metrics = dict  # name -> (sum, count)


def loss_weights(
    mask: Bool[Array | np.ndarray, "B T"],
    loss_type: str,
    max_completion_length: int | None = None,
) -> Float[Array, "B T"]:
    """Weight of every token in the loss; 0 where masked, rows without any token count nowhere.

    `sequence_mean` (GRPO, Eq. 1 of ISPO): mean over sequences of token means. `token_mean` (DAPO): over
    all tokens of the batch. `constant` (Dr.GRPO): 1/(B·max_completion_length).
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type: {loss_type!r} is not one of {LOSS_TYPES}")
    mask = mask.astype(jnp.float32)
    lengths = jnp.sum(mask, axis=-1, keepdims=True)
    sequences = jnp.maximum(jnp.sum((lengths > 0).astype(jnp.float32)), 1.0)
    if loss_type == "sequence_mean":
        return mask / jnp.maximum(lengths, 1.0) / sequences
    if loss_type == "token_mean":
        return mask / jnp.maximum(jnp.sum(mask), 1.0)
    if not max_completion_length:
        raise ValueError("loss_type 'constant' needs max_completion_length")
    return mask / (sequences * max_completion_length)


def policy_loss(
    logp: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    advantages: Float[Array, "B T"] | Float[Array, " B"],
    mask: Bool[Array, "B T"],
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: str = "sequence_mean",
    max_completion_length: int | None = None,
    weights: Float[Array, "B T"] | None = None,
    beta: float = 0.0,
    logp_ref: Float[Array, "B T"] | None = None,
    kl_estimator: str = "k3",
    importance_sampling_level: str = "token",
    delta: float = 0.0,
    entropy: Float[Array, "B T"] | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Clipped surrogate, to be minimised, and its metrics as (sum, count) pairs.

    Gradient flows through `logp` (and `entropy`) alone; the caller passes the others as numbers.
    `advantages` are [B] or [B,T]. `weights` from `loss_weights` over the whole optimiser batch replace
    those of this micro-batch. The clip range is [1 − epsilon, 1 + epsilon_high], epsilon_high defaulting
    to epsilon; the log-ratio is clamped to ±20. An empty mask gives loss 0 with gradient 0.

    - `importance_sampling_level` "sequence" (GSPO, Zheng et al. 2025, arXiv:2507.18071): the ratio of a
      row is s = exp(mean_t log-ratio), in the token form s·π/sg(π), whose value is s at every token, so
      that advantages may differ per token.
    - `delta` > 0 (dual clip, Ye et al. 2020): where Â < 0 the loss is at most −delta·Â. 0: off.
    - `beta` > 0 adds β·KL(π‖π_0) per token with the given estimator.
    - `entropy_coef` > 0 subtracts that times the policy's `entropy` per token, with the same weights.
    """
    mask = mask.astype(bool)
    if weights is None:
        weights = loss_weights(mask, loss_type, max_completion_length)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    # where before any arithmetic: NaN under the mask must not reach the gradient
    logp, logp_old = jnp.where(mask, logp, 0.0), jnp.where(mask, logp_old, 0.0)
    ratio = importance_ratio(logp, logp_old, mask, importance_sampling_level)
    advantages = jnp.where(mask, advantages, 0.0)
    clipped = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon_high)
    per_token = -jnp.minimum(ratio * advantages, clipped * advantages)
    if delta:
        bounded = jnp.minimum(per_token, -delta * advantages)
        per_token = jnp.where(advantages < 0, bounded, per_token)
    if beta:
        if logp_ref is None:
            raise ValueError("beta: the KL term needs logp_ref")
        kl = divergence.in_loss(kl_estimator, logp, jnp.where(mask, logp_ref, 0.0))
        per_token = per_token + beta * kl
    if entropy_coef:
        if entropy is None:
            raise ValueError("entropy_coef: the bonus needs entropy")
        per_token = per_token - entropy_coef * jnp.where(mask, entropy, 0.0)
    loss = jnp.sum(weights * per_token)
    low = (ratio < 1.0 - epsilon) & (advantages < 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    tokens = jnp.sum(mask.astype(jnp.float32))
    metrics = {
        "clip_ratio/low_mean": (masked.masked_sum(low, mask), tokens),
        "clip_ratio/high_mean": (masked.masked_sum(high, mask), tokens),
        "clip_ratio/region_mean": (masked.masked_sum(low | high, mask), tokens),
        "policy/ratio_deviation/mean": (masked.masked_sum(jnp.abs(ratio - 1.0), mask), tokens),
        "policy/ratio_deviation/max": jnp.max(jnp.where(mask, jnp.abs(ratio - 1.0), 0.0)),
    }
    if delta:
        dual = (ratio > delta) & (advantages < 0)
        metrics["clip_ratio/dual_mean"] = (masked.masked_sum(dual, mask), tokens)
    if beta:
        metrics["kl"] = (masked.masked_sum(kl, mask), tokens)
    return loss, metrics


def importance_ratio(
    logp: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    level: str = "token",
) -> Float[Array, "B T"]:
    """ρ_t = π_θ/π_old per token, or per sequence in GSPO's token form; 1 where masked."""
    if level not in IMPORTANCE_LEVELS:
        raise ValueError(f"importance_sampling_level: {level!r} is not one of {IMPORTANCE_LEVELS}")
    log_ratio = jnp.where(mask, logp - logp_old, 0.0)
    if level == "sequence":
        mean = masked.masked_mean(log_ratio, mask, axis=-1)[:, None]
        # in brackets: (mean + logp) − logp would round differently at every token
        log_ratio = jax.lax.stop_gradient(mean) + (logp - jax.lax.stop_gradient(logp))
        log_ratio = jnp.where(mask, log_ratio, 0.0)
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))


def truncated_importance(
    logp_old: Float[Array, "B T"],
    logp_sampler: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    cap: float,
) -> Float[Array, "B T"]:
    """Truncated importance sampling: min(π_old/π_sampler, cap), a factor of each token's advantage.

    Corrects for a sampler whose numbers differ from the learner's (Yao et al. 2025). A positive factor
    of the advantage is one of the whole clipped surrogate. 0 where masked.
    """
    log_ratio = jnp.where(mask, logp_old - logp_sampler, 0.0)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))
    return jnp.where(mask, jnp.minimum(ratio, cap), 0.0)
