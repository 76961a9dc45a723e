"""Rotary positions and grouped-query attention, over one sequence or over a shared prompt and a tail.

Axes: B rows, P prompts, G = B/P rollouts of a prompt, Q query positions, K key positions, N query heads,
M key/value heads, R = N/M query heads per key/value head, h head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any visible key (left padding) stays finite


def rotary(
    positions: Int[Array, "B Q"], head_dim: int, theta: float
) -> tuple[Float[Array, "B Q h"], Float[Array, "B Q h"]]:
    """cos and sin of the rotary embedding, float32, in Hugging Face's half-split layout."""
    inverse = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * inverse[None, None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B Q N h"], cos: Array, sin: Array) -> Float[Array, "B Q N h"]:
    """Apply rotary positions to queries or keys."""
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in (cos, sin))
    return x * cos + turned * sin


def attend(
    q: Float[Array, "B Q N h"],
    k: Float[Array, "B K M h"],
    v: Float[Array, "B K M h"],
    mask: Bool[Array, "B Q K"],
) -> Float[Array, "B Q N h"]:
    """Softmax attention, float32 scores; a query that sees no key gets an arbitrary finite value."""
    rows, queries, heads, size = q.shape
    q = q.reshape(rows, queries, k.shape[2], -1, size) * size**-0.5
    scores = jnp.einsum("bqmrh,bkmh->bmrqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bmrqk,bkmh->bqmrh", weights, v).reshape(rows, queries, heads, size)


def attend_shared_prompt(
    q: Float[Array, "B N h"],
    prompt_k: Float[Array, "P S M h"],
    prompt_v: Float[Array, "P S M h"],
    prompt_mask: Bool[Array, "P S"],
    k: Float[Array, "B T M h"],
    v: Float[Array, "B T M h"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B N h"]:
    """One query per row over its prompt's keys, held once for the G rows of the group, and its own.

    Rows g·1 … g·G of a group are adjacent. One softmax over both parts, float32 scores.
    """
    rows, heads, size = q.shape
    prompts, prompt_length, kv_heads, _ = prompt_k.shape
    q = q.reshape(rows, kv_heads, -1, size) * size**-0.5
    grouped = q.reshape(prompts, -1, *q.shape[1:])
    f32 = {"preferred_element_type": jnp.float32}
    shared = jnp.einsum("pgmrh,psmh->pgmrs", grouped, prompt_k, **f32)
    shared = jnp.where(prompt_mask[:, None, None, None], shared, MASKED)
    own = jnp.einsum("bmrh,btmh->bmrt", q, k, **f32)
    own = jnp.where(mask[:, None, None], own, MASKED)
    scores = jnp.concatenate([shared.reshape(*own.shape[:-1], prompt_length), own], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    shared, own = jnp.split(weights, [prompt_length], axis=-1)
    shared = jnp.einsum("pgmrs,psmh->pgmrh", shared.reshape(*grouped.shape[:-1], -1), prompt_v)
    out = shared.reshape(q.shape) + jnp.einsum("bmrt,btmh->bmrh", own, v)
    return out.reshape(rows, heads, size)
