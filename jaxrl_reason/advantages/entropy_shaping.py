"""Advantages shaped by entropy: GTPO, GRPO-S, and PREPO's weights, each as interpreted.

GTPO and GRPO-S (Tan et al. 2025, arXiv:2508.04349): among a group's right rollouts uncertain tokens earn
more, among its wrong ones confident tokens lose more. Entropies in nats, floored at 1e-6. In a group whose
outcomes all agree only the entropy term varies, and the z-score blows it up to unit size.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked
from jaxrl_reason.advantages import group

ENTROPY_FLOOR = 1e-6


def gtpo_advantages(
    correct: Float[Array, " B"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    num_generations: int,
    alpha1: float = 1.0,
    alpha2: float = 0.1,
    separate: bool = False,
) -> Float[Array, "B T"]:
    """Z-score over the group's tokens of the token rewards

        right: α1 + α2·d_t·H_t / Σ_k H_kt,      wrong: −α1 − α2·h_t·H_t⁻¹ / Σ_k H_kt⁻¹,

    the sums over the d_t right (h_t wrong) rollouts of the group that reach position t. `separate`: a
    z-score per outcome, as one public version has it; α1, and with it the outcome, then cancels.
    """
    mask = mask.astype(bool)
    right = (correct > 0.5)[:, None] & mask
    reward = _shaped(right, mask, entropy, num_generations, alpha1, alpha2)
    rows = lambda x: x.reshape(mask.shape[0] // num_generations, -1)  # noqa: E731
    return _normalised(rows(reward), rows(right), rows(mask), separate).reshape(mask.shape)


def grpo_s_advantages(
    correct: Float[Array, " B"],
    entropy: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    num_generations: int,
    alpha1: float = 1.0,
    alpha2: float = 0.1,
    separate: bool = False,
) -> Float[Array, " B"]:
    """GTPO's rewards with each sequence's mean entropy in the place of H_t, one advantage a rollout."""
    mean = masked.masked_mean(entropy, mask, axis=1)[:, None]
    alive = jnp.any(mask.astype(bool), axis=1)[:, None]
    right = (correct > 0.5)[:, None] & alive
    reward = _shaped(right, alive, mean, num_generations, alpha1, alpha2)
    rows = lambda x: x.reshape(-1, num_generations)  # noqa: E731
    return _normalised(rows(reward), rows(right), rows(alive), separate).reshape(-1)


def entropy_weights(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """PREPO (Sun et al. 2025, arXiv:2511.00794, as interpreted): a sequence's mean entropy over the batch's mean of those.

    Rows without tokens count nowhere (weight 0); 1 for all where every entropy is 0.
    """
    alive = jnp.any(mask.astype(bool), axis=1)
    own = masked.masked_mean(entropy, mask, axis=1)
    batch = masked.masked_mean(own, alive)
    weight = jnp.where(batch > 0, own / jnp.where(batch > 0, batch, 1.0), 1.0)
    return jnp.where(alive, weight, 0.0)


def _shaped(right, alive, entropy, num_generations, alpha1, alpha2):
    """Rewards [B,T]; the shares are taken per position over a group's rollouts of the same outcome."""
    entropy = jnp.maximum(jnp.where(alive, entropy, 1.0), ENTROPY_FLOOR)

    def share(values, chosen):
        grouped = lambda x: x.reshape(-1, num_generations, x.shape[1])  # noqa: E731
        values = grouped(jnp.where(chosen, values, 0.0))
        total = jnp.sum(values, axis=1, keepdims=True)
        count = jnp.sum(grouped(chosen.astype(jnp.float32)), axis=1, keepdims=True)
        return (values / jnp.where(total > 0, total, 1.0) * count).reshape(chosen.shape)

    wrong = alive & ~right
    gain = alpha1 + alpha2 * share(entropy, right)
    loss = -alpha1 - alpha2 * share(1.0 / entropy, wrong)
    return jnp.where(right, gain, jnp.where(wrong, loss, 0.0))


def _normalised(reward, right, alive, separate):
    if not separate:
        return group.zscore(reward, alive)
    return group.zscore(reward, right) + group.zscore(reward, alive & ~right)
