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
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log π(target) and the entropy of π at each position, nats, float32, π at `temperature`.

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
        return chosen - normaliser, -jnp.sum(jnp.exp(everything) * everything, axis=-1)

    def body(carry, xs):
        return carry, chunk(head, *xs)

    _, (logp, entropy) = jax.lax.scan(body, None, (hidden, targets))
    logp, entropy = (
        jnp.moveaxis(x, 0, 1).reshape(rows, length + pad)[:, :length] for x in (logp, entropy)
    )
    return logp, entropy
