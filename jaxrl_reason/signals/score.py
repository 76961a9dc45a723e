"""Teacher-forced log-probs and entropies of given responses: the learner's own view of a rollout."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason.model import decoder, logprobs
from jaxrl_reason.model.config import ModelConfig


def score(
    config: ModelConfig,
    params: decoder.Params,
    prompt_tokens: Int[Array, "B S"],
    prompt_mask: Bool[Array, "B S"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    temperature: float,
    chunk_tokens: int = 4096,
    remat: bool = False,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log π(y_t | prompt, y_<t) and the entropy at t, nats at `temperature`; 0 where masked.

    Differentiable in `params`; the same function serves old log-probs and the update, so that on the
    first update both agree.
    """
    mask = mask.astype(bool)
    hidden = decoder.forward_hidden(
        config,
        params,
        jnp.concatenate([prompt_tokens, tokens], axis=1),
        jnp.concatenate([prompt_mask.astype(bool), mask], axis=1),
        remat=remat,
    )
    first = prompt_tokens.shape[1] - 1  # the last prompt position predicts the first response token
    logp, entropy = logprobs.token_logprobs(
        hidden[:, first:-1],
        decoder.output_head(config, params),
        tokens,
        temperature=temperature,
        num_tokens=config.num_tokens,
        chunk_tokens=chunk_tokens,
    )
    return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)
