"""ProGRPO (Li et al. 2026, arXiv:2602.05281, as interpreted): answers less confident than their prompt are favoured.

    Â + α·(c(q) − c(o)) in groups with Σ R > 0,   c = exp(mean log-prob of the least likely ⌈20 %⌉ of tokens)

Stop-gradient numbers under the policy that sampled.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked


def low_probability_confidence(
    logp: Float[Array, "B T"], mask: Bool[Array, "B T"], fraction: float = 0.2
) -> Float[Array, " B"]:
    """c of each row: the geometric mean probability of its ⌈fraction·n⌉ least likely tokens; 0 if empty."""
    mask = mask.astype(bool)
    logp = jnp.where(mask, logp, 0.0)
    length = jnp.sum(mask.astype(jnp.int32), axis=1)
    chosen = masked.top_mask(-logp, mask, masked.ceil_fraction(length, fraction))
    confidence = jnp.exp(masked.masked_mean(logp, chosen, axis=1))
    return jnp.where(length > 0, confidence, 0.0)


def progrpo_advantages(
    advantages: Float[Array, " B"],
    reward: Float[Array, " B"],
    prompt_confidence: Float[Array, " B"],
    confidence: Float[Array, " B"],
    num_generations: int,
    alpha: float = 0.3,
) -> Float[Array, " B"]:
    """Â + α·(c(q) − c(o)) where the group's rewards sum to more than 0, else Â."""
    total = jnp.sum(reward.reshape(-1, num_generations), axis=1)
    helped = jnp.repeat(total > 0, num_generations)
    return advantages + jnp.where(helped, alpha * (prompt_confidence - confidence), 0.0)
