"""Per-token gradient norms in closed form: no backward pass, no array [B,T,V]."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason.model import decoder, logprobs
from jaxrl_reason.model.config import ModelConfig


def policy_gradient_norms(
    config: ModelConfig,
    params: decoder.Params,
    prompt_tokens: Int[Array, "B S"],
    prompt_mask: Bool[Array, "B S"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    temperature: float,
    chunk_tokens: int = 4096,
) -> Float[Array, "B T"]:
    """‖∂ log π(y_t | prompt, y_<t) / ∂z_t‖₂ = ‖π_t − e_{y_t}‖₂, float32, 0 where masked.

    z_t are the logits divided by `temperature`; with respect to the undivided ones every norm is
    1/temperature of this. On the first update after sampling the ratio is 1, and the norm of the
    surrogate loss's gradient is |Â_t| times this, before the weights of the reduction. What lies below
    the logits (hidden states, parameters) is not part of it.
    """
    mask = mask.astype(bool)
    hidden = decoder.forward_hidden(
        config,
        params,
        jnp.concatenate([prompt_tokens, tokens], axis=1),
        jnp.concatenate([prompt_mask.astype(bool), mask], axis=1),
    )
    first = prompt_tokens.shape[1] - 1  # the last prompt position predicts the first response token
    *_, norms = logprobs.token_logprobs(
        hidden[:, first:-1],
        decoder.output_head(config, params),
        tokens,
        temperature=temperature,
        num_tokens=config.num_tokens,
        chunk_tokens=chunk_tokens,
        with_gradient_norm=True,
    )
    return jnp.where(mask, norms, 0.0)
