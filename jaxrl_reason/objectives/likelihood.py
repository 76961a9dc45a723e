"""Maximum likelihood of given responses (supervised fine-tuning)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked
from jaxrl_reason.objectives.surrogate import Metrics


def nll_loss(
    logp: Float[Array, "B T"], mask: Bool[Array, "B T"], weights: Float[Array, "B T"]
) -> tuple[Float[Array, ""], Metrics]:
    """−Σ w·log π(y_t): with `token_mean` weights, the mean over all response tokens, nats."""
    mask = mask.astype(bool)
    logp = jnp.where(mask, logp, 0.0)
    tokens = jnp.sum(mask.astype(jnp.float32))
    return -jnp.sum(weights * logp), {"nll": (-masked.masked_sum(logp, mask), tokens)}
