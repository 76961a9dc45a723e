"""From logits to the next token: temperature, top-k, top-p, greedy, one random key per row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_reason.model.logprobs import MASKED_LOGIT, mask_unknown_ids


def temper(logits: Float[Array, "B V"], temperature: float, num_tokens: int) -> Float[Array, "B V"]:
    """Logits of the policy: divided by the temperature (0 means greedy, scored at 1), unknown ids out."""
    return mask_unknown_ids(logits.astype(jnp.float32) / (temperature or 1.0), num_tokens)


def restrict(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Keep the `top_k` (0: all) largest, then the smallest set with probability at least `top_p`.

    Ties with the last kept value are kept.
    """
    if top_k and top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, MASKED_LOGIT, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1)
        logits = jnp.where(logits < threshold, MASKED_LOGIT, logits)
    return logits


def choose(
    logits: Float[Array, "B V"], keys: Array, *, temperature: float, top_k: int, top_p: float
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The next token of every row and its log-prob under the whole tempered policy.

    `logits` come from `temper`. The log-prob is that of the unrestricted distribution, so that it can
    be compared with the learner's.
    """
    if temperature == 0.0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = jax.vmap(jax.random.categorical)(keys, restrict(logits, top_k, top_p))
    logp = jax.nn.log_softmax(logits, axis=-1)
    return token.astype(jnp.int32), jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
