"""How likely the policy finds the prompts themselves: log-probs of their own tokens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason.model import decoder, logprobs
from jaxrl_reason.model.config import ModelConfig


def score_prompts(
    config: ModelConfig,
    params: decoder.Params,
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    *,
    temperature: float,
    chunk_tokens: int = 4096,
) -> tuple[Float[Array, "P S"], Bool[Array, "P S"]]:
    """log π(x_t | x_<t), nats at `temperature`, and where there is one: at all tokens but the first."""
    mask = mask.astype(bool)
    hidden = decoder.forward_hidden(config, params, tokens, mask)
    logp, _ = logprobs.token_logprobs(
        hidden[:, :-1],
        decoder.output_head(config, params),
        tokens[:, 1:],
        temperature=temperature,
        num_tokens=config.num_tokens,
        chunk_tokens=chunk_tokens,
    )
    scored = mask & jnp.roll(mask, 1, axis=1).at[:, 0].set(False)
    return jnp.where(scored, jnp.pad(logp, ((0, 0), (1, 0))), 0.0), scored


def perplexity(logp: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """exp(−mean log-prob) of each prompt [P]; 1 for a prompt of one token."""
    count = np.maximum(mask.sum(axis=1), 1)
    return np.exp(-np.where(mask, logp, 0.0).sum(axis=1) / count)
