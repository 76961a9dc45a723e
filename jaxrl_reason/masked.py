"""Masked statistics in float32. What stands under a 0 of the mask, NaN and inf included, changes
neither the value nor the gradient (`where` on both sides)."""

from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def masked_sum(
    x: Shaped[Array, "..."], mask: Shaped[Array, "..."], axis=None
) -> Float[Array, "..."]:
    """Σ x·m; 0 where nothing is selected."""
    return jnp.sum(jnp.where(mask.astype(bool), x.astype(jnp.float32), 0.0), axis=axis)


def masked_mean(
    x: Shaped[Array, "..."], mask: Shaped[Array, "..."], axis=None
) -> Float[Array, "..."]:
    """Σ x·m / max(Σ m, 1); 0 where nothing is selected."""
    count = jnp.sum(mask.astype(jnp.float32), axis=axis)
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1.0)


def masked_std(
    x: Shaped[Array, "..."], mask: Shaped[Array, "..."], axis=None, ddof: int = 1
) -> Float[Array, "..."]:
    """Standard deviation in two passes; 0 where at most `ddof` values are selected."""
    count = jnp.sum(mask.astype(jnp.float32), axis=axis)
    mean = masked_mean(x, mask, axis)
    centred = jnp.where(mask.astype(bool), x.astype(jnp.float32), 0.0) - (
        mean if axis is None else jnp.expand_dims(mean, axis)
    )
    variance = masked_sum(centred**2, mask, axis) / jnp.maximum(count - ddof, 1.0)
    return jnp.where(count > ddof, jnp.sqrt(variance), 0.0)


def ceil_fraction(count: Int[Array, "..."], fraction: float) -> Int[Array, "..."]:
    """⌈fraction·count⌉ in integers: in float32 ⌈0.15·100⌉ would be 16."""
    exact = Fraction(str(fraction)).limit_denominator(10_000)
    if fraction > 0:
        exact = max(exact, Fraction(1, 10_000))  # not rounded to 0: of some tokens at least one
    top, bottom = jnp.int32(exact.numerator), jnp.int32(exact.denominator)
    whole, rest = count // bottom, count % bottom  # count·top could overflow for a whole batch
    return whole * top + (rest * top + bottom - jnp.int32(1)) // bottom


def top_mask(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], count: Int[Array, " B"]
) -> Bool[Array, "B T"]:
    """Marks in each row the `count` largest selected values, exactly; ties go to the earlier position."""
    mask = mask.astype(bool)
    key = jnp.where(mask, -x, jnp.inf)
    order = jnp.argsort(key, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    return mask & (rank < count[:, None])


def merge_metrics(a: dict, b: dict) -> dict:
    """Adds (sum, count) pairs name by name; names ending in "/max" hold a number and keep the larger."""
    add = lambda x, y: (x[0] + y[0], x[1] + y[1])  # noqa: E731
    return {k: jnp.maximum(a[k], b[k]) if k.endswith("/max") else add(a[k], b[k]) for k in a}
