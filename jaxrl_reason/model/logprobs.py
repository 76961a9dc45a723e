"""Log-probabilities and entropies from hidden states, in chunks: no array of shape [B,T,V] ever exists."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MASKED_LOGIT = (
    -1e30
)  # of ids that no tokenizer has: probability exactly 0, and finite in every product


def mask_unknown_ids(logits: Float[Array, "*B V"], num_tokens: int) -> Float[Array, "*B V"]:
    """Takes all probability from ids at or beyond `num_tokens`."""
    known = jnp.arange(logits.shape[-1]) < num_tokens
    return jnp.where(known, logits, jnp.asarray(MASKED_LOGIT, logits.dtype))


def token_logprobs(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    temperature: float,
    num_tokens: int,
    chunk_tokens: int = 4096,
    with_gradient_norm: bool = False,
) -> tuple[Float[Array, "B T"], ...]:
    """log π(target) and the entropy of π at each position, nats, float32, π at `temperature`.

    With `with_gradient_norm` a third one: ‖π − e_target‖₂, the norm of the gradient of log π(target) with
    respect to the tempered logits, from 0 (certain of the target) to √2 (certain of another token).

    Works through the T axis in slices of about `chunk_tokens` tokens (the B axis stays whole, so its
    sharding does) and recomputes each slice's logits in the backward pass; peak memory is
    chunk_tokens·V. `head` keeps its own dtype: its gradient accumulates over chunks in that dtype.
    """
    rows, length, width = hidden.shape
    step = min(length, max(1, chunk_tokens // rows))
    pad = -length % step
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)))
    hidden = jnp.moveaxis(hidden.reshape(rows, -1, step, width), 1, 0)
    targets = jnp.moveaxis(targets.reshape(rows, -1, step), 1, 0)

    @jax.checkpoint
    def chunk(head, hidden, targets):
        logits = jnp.einsum(
            "btd,dv->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        logits = mask_unknown_ids(logits / temperature, num_tokens)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        # not normaliser − E_π[logit], whose error is of the order of ε·logit²
        everything = logits - normaliser[..., None]
        out = chosen - normaliser, -jnp.sum(jnp.exp(everything) * everything, axis=-1)
        return (*out, gradient_norm(everything, targets)) if with_gradient_norm else out

    def body(carry, xs):
        return carry, chunk(head, *xs)

    _, out = jax.lax.scan(body, None, (hidden, targets))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(rows, length + pad)[:, :length] for x in out)


def gradient_norm(logp: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """‖π − e_y‖₂ of the log-probabilities of every id, ‖π − e_y‖² = (1 − π_y)² + Σ_{v≠y} π_v²."""
    is_target = jnp.arange(logp.shape[-1]) == targets[..., None]
    others = jnp.where(is_target, 0.0, jnp.exp(logp))
    # 1 − π_y as the sum of the others: 1 − 2π_y + Σ_v π_v² is rounding noise where π_y is near 1
    return jnp.sqrt(jnp.sum(others, axis=-1) ** 2 + jnp.sum(others**2, axis=-1))
