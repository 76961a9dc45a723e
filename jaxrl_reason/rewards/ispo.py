"""ISPO's composite reward (Chen et al. 2026, arXiv:2606.08815, §3.3–3.6).

    R = R_o + λ1·(2·R_o − 1)·IFD + λ2·R_token                                   (Eq. 8)

Every input is a stop-gradient number under the policy that sampled (and, for the drift, the frozen start
policy): the reward carries no gradient. Log-probs and entropies in nats at the sampling temperature.

A property worth knowing, not mended here: R_token of a correct rollout is at most 0, of a wrong one mostly
above 0, and IFD is unbounded, so large λ can reverse the order of the outcomes (`ispo/order_violations`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked

CRITICAL_VARIANTS = ("intersection", "entropy", "drift", "union")


def conditional_ifd(
    answer_logp: Float[Array, "B K"],
    answer_logp_ablated: Float[Array, "B K"],
    answer_mask: Bool[Array, "B K"],
) -> Float[Array, " B"]:
    """IFD = (log p(A|Q,T) − log p(A|Q)) / |A|, nats per answer token (Eq. 2); 0 without an answer.

    `answer_logp` are the answer tokens' log-probs inside the rollout, `answer_logp_ablated` the same
    tokens' after prompt and opening alone.
    """
    gap = jnp.where(answer_mask.astype(bool), answer_logp, 0.0) - jnp.where(
        answer_mask.astype(bool), answer_logp_ablated, 0.0
    )
    return masked.masked_mean(gap, answer_mask, axis=-1)


def critical_tokens(
    entropy: Float[Array, "B T"],
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"] | None,
    mask: Bool[Array, "B T"],
    top_fraction: float = 0.1,
    drift_threshold: float = 0.3,
    variant: str = "intersection",
) -> Bool[Array, "B T"]:
    """The critical set C of each rollout.

    𝒜: the ⌈top_fraction·n⌉ response tokens with the largest entropy, exact count, ties to the earlier
    (Eq. 4). C_Δ: |log π_old − log π_0| ≥ drift_threshold (Eq. 5). `variant` (Table 2b): their
    intersection, `entropy` (𝒜), `drift` (C_Δ) or union. With π_old = π_0 the drift set is empty.
    """
    if variant not in CRITICAL_VARIANTS:
        raise ValueError(f"critical: {variant!r} is not one of {CRITICAL_VARIANTS}")
    uncertain = uncertain_tokens(entropy, mask, top_fraction)
    if variant == "entropy":
        return uncertain
    if logp_ref is None:
        raise ValueError(f"critical: {variant!r} needs logp_ref")
    drifted = drifted_tokens(logp, logp_ref, mask, drift_threshold)
    if variant == "drift":
        return drifted
    return uncertain | drifted if variant == "union" else uncertain & drifted


def uncertain_tokens(
    entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], top_fraction: float
) -> Bool[Array, "B T"]:
    """𝒜: exactly ⌈top_fraction·n⌉ of a rollout's n tokens, at least one where there is any (Eq. 4)."""
    lengths = jnp.sum(mask.astype(jnp.int32), axis=-1)
    return masked.top_mask(entropy, mask, masked.ceil_fraction(lengths, top_fraction))


def drifted_tokens(
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    drift_threshold: float,
) -> Bool[Array, "B T"]:
    """C_Δ: tokens whose log-prob moved by at least `drift_threshold` nats since the start (Eq. 5)."""
    mask = mask.astype(bool)
    return mask & (jnp.abs(jnp.where(mask, logp - logp_ref, 0.0)) >= drift_threshold)


def token_reward(
    logp: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    critical: Bool[Array, "B T"],
    correct: Float[Array, " B"],
    alpha: float = 1.0,
    beta: float = 1.0,
    entropy_threshold: float = 0.3,
    symmetric: bool = False,
) -> Float[Array, " B"]:
    """Directional reward over the critical set; 0 where it is empty.

    Correct: mean log π_old(y_t) (Eq. 6). Wrong: mean of α·H_t − β·max(0, τ_H − H_t) (Eq. 7).
    `symmetric` uses the correct form for both (Table 2c).
    """
    fluent = masked.masked_mean(logp, critical, axis=-1)
    if symmetric:
        return fluent
    hinge = jnp.maximum(0.0, entropy_threshold - entropy)
    unsure = masked.masked_mean(alpha * entropy - beta * hinge, critical, axis=-1)
    return jnp.where(correct > 0.5, fluent, unsure)


def composite_reward(
    correct: Float[Array, " B"],
    ifd: Float[Array, " B"],
    token: Float[Array, " B"],
    lambda1: float = 0.5,
    lambda2: float = 0.1,
) -> Float[Array, " B"]:
    """R = R_o + λ1·(2R_o − 1)·IFD + λ2·R_token (Eq. 8). λ2 = 0 is `+ifd`, λ1 = 0 `+token` (Table 2a)."""
    return correct + lambda1 * (2.0 * correct - 1.0) * ifd + lambda2 * token
