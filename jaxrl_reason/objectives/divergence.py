"""Per-token estimators of KL(π‖π_0) from samples of π (Schulman 2020), d = log π_0 − log π.

k1 = −d is unbiased, k2 = d²/2 has low variance, k3 = exp(d) − d − 1 is both unbiased and at least 0.
d is clamped to ±20.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked

ESTIMATORS = ("k1", "k2", "k3")
CLAMP = 20.0


def estimate(
    estimator: str, logp: Float[Array, "B T"], logp_ref: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """The estimator named, per token, in nats."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"kl_estimator: {estimator!r} is not one of {ESTIMATORS}")
    d = jnp.clip(logp_ref - logp, -CLAMP, CLAMP)
    if estimator == "k1":
        return -d
    # expm1: exp(d) − 1 has lost all digits, and can be too small, where d is about 1e-4
    return 0.5 * d**2 if estimator == "k2" else jnp.expm1(d) - d


def in_loss(
    estimator: str, logp: Float[Array, "B T"], logp_ref: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """An estimator whose gradient is that of a divergence. k1's has expectation 0, so it is refused."""
    if estimator == "k1":
        raise ValueError(
            "kl_estimator: k1 in the loss has a gradient of expectation 0; use k2 or k3 (k1 as a metric)"
        )
    return estimate(estimator, logp, logp_ref)


def in_reward(
    estimator: str,
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, " B"]:
    """Σ_t of an estimator over each response: what a reward penalty multiplies. 0 for an empty row."""
    mask = mask.astype(bool)
    values = estimate(estimator, jnp.where(mask, logp, 0.0), jnp.where(mask, logp_ref, 0.0))
    return masked.masked_sum(values, mask, axis=-1)
