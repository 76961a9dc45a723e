"""DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, Eq. 13)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def overlong_penalty(lengths: Int[Array, " B"], max_length: int, cache: int) -> Float[Array, " B"]:
    """clip((L_max − L_cache − L)/L_cache, −1, 0): from 0 at L_max − L_cache tokens to −1 at L_max.

    Raises ValueError unless 0 < cache <= max_length.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"overlong_cache: {cache} is not in 1..{max_length} tokens")
    over = (max_length - cache - lengths.astype(jnp.float32)) / cache
    return jnp.clip(over, -1.0, 0.0)
