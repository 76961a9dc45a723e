"""Rollouts: each prompt is prefilled once, its G completions share that cache, one jitted decode loop.

Randomness is stateless: the key of a token is fold_in(seed, step, prompt key, rollout index, position).
A prompt's completions therefore do not depend on what else is in the batch, on sharding or on a restart.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrl_reason.model import decoder
from jaxrl_reason.model.config import ModelConfig
from jaxrl_reason.rollout import logits as logits_lib
from jaxrl_reason.types import Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to decode. temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole."""

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        for name, low in (("num_generations", 1), ("max_completion_length", 1), ("top_k", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: {getattr(self, name)} is below {low}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: {self.temperature} is not a finite number from 0 on")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} is not in (0, 1]")


def sample(
    config: ModelConfig,
    params: decoder.Params,
    prompts: Prompts | Sequence[Sequence[int]],
    num_generations: int = 1,
    seed: int = 0,
    max_completion_length: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    step: int = 0,
) -> Rollouts:
    """Sample `num_generations` completions of every prompt: rows p·G … p·G+G−1 belong to prompt p.

    `prompts` is a Prompts batch, or a list of token-id lists (their keys are then made of their content). `seed` and
    `step` select the random numbers. Lengths are counted in tokens. Returns device arrays; raises
    ValueError naming the argument for impossible values or when the model has no end token.
    """
    sampling = SamplingParams(num_generations, max_completion_length, temperature, top_k, top_p)
    if not config.eos_token_ids:
        raise ValueError("eos_token_ids: the model's config names no end token")
    if not -(2**31) <= seed < 2**31:
        raise ValueError(f"seed: {seed} does not fit 32 bits")
    if not isinstance(prompts, Prompts):
        from jaxrl_reason.data.prompts import left_pad

        if not prompts:
            raise ValueError("prompts: there are none")
        tokens, mask = left_pad(prompts, max(map(len, prompts), default=0), 0)
        prompts = Prompts(tokens, mask, _content_keys(prompts))
    cache, first = _prefill(config, params, prompts.tokens, prompts.mask)
    keys = _row_keys(seed, step, prompts.keys, num_generations)
    return _decode(config, sampling, params, prompts.mask, cache, first, keys)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(config, params, tokens, mask):
    """Keys and values of the prompts, [L,P,S,M,h] each, and the logits after each prompt [P,V]."""
    hidden, cache = decoder.forward_hidden(config, params, tokens, mask, with_cache=True)
    return cache, _logits(config, params, hidden[:, -1])


@functools.partial(jax.jit, static_argnums=3)
def _row_keys(seed, step, prompt_keys, num_generations):
    base = jax.random.fold_in(jax.random.key(seed), step)
    per_prompt = jax.vmap(lambda k: jax.random.fold_in(base, k))(prompt_keys)
    index = jnp.arange(num_generations)
    keys = jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(index))(per_prompt)
    return keys.reshape(-1)


def _new_cache(config, rows, length):
    """One pair of empty [B,T,M,h] per layer. Made inside `_decode`, so that it is sharded like the rows."""
    shape = (rows, length, config.num_key_value_heads, config.head_dim)
    layers = range(config.num_hidden_layers)
    return [(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)) for _ in layers]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(config, sampling, params, prompt_mask, prompt_cache, first_logits, keys):
    """The decode loop; stops when every row has ended."""
    rows, length = keys.shape[0], sampling.max_completion_length
    layers = decoder.unstack_layers(config, params)
    ends = jnp.asarray(config.eos_token_ids, jnp.int32)
    prompt_lengths = jnp.repeat(jnp.sum(prompt_mask, axis=-1), sampling.num_generations)

    def choose(logits, t):
        row_keys = jax.vmap(lambda k: jax.random.fold_in(k, t))(keys)
        return logits_lib.choose(
            logits_lib.temper(logits, sampling.temperature, config.num_tokens),
            row_keys,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )

    def write(state, t, token, logp):
        """Store the tokens of position t for rows that have not ended before it."""
        active = ~state["ended"]
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=1)
        return state | {
            "tokens": put(state["tokens"], jnp.where(active, token, 0)[:, None]),
            "logp": put(state["logp"], jnp.where(active, logp, 0.0)[:, None]),
            "lengths": state["lengths"] + active,
            "ended": state["ended"] | jnp.any(token[:, None] == ends[None], axis=-1),
            "last": token,
        }

    def keep_going(state):
        return (state["t"] < length) & ~jnp.all(state["ended"])

    def body(state):
        t = state["t"]
        hidden, new_cache = decoder.decode_step(
            config, params, layers, state["last"], prompt_lengths + t - 1,
            prompt_cache, prompt_mask, state["cache"], t - 1,
        )  # fmt: skip
        state = write(state, t, *choose(_logits(config, params, hidden), t))
        return state | {"cache": new_cache, "t": t + 1}

    state = {
        "t": jnp.int32(1),
        "tokens": jnp.zeros((rows, length), jnp.int32),
        "logp": jnp.zeros((rows, length), jnp.float32),
        "lengths": jnp.zeros(rows, jnp.int32),
        "ended": jnp.zeros(rows, bool),
        "last": jnp.zeros(rows, jnp.int32),
        "cache": _new_cache(config, rows, length),
    }
    first_logits = jnp.repeat(first_logits, sampling.num_generations, axis=0)
    state = write(state, 0, *choose(first_logits, 0))
    state = jax.lax.while_loop(keep_going, body, state)
    mask = jnp.arange(length)[None] < state["lengths"][:, None]
    return Rollouts(state["tokens"], mask, state["logp"], state["lengths"], ~state["ended"])


def _logits(config, params, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    head = decoder.output_head(config, params).astype(hidden.dtype)
    return jnp.einsum("bd,dv->bv", hidden, head, preferred_element_type=jnp.float32)


def _content_keys(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """A key per prompt that depends on its tokens, and on how often they came before in the batch."""
    seen, keys = Counter(), []
    for prompt in prompts:
        content = np.asarray(prompt, np.int32).tobytes()
        keys.append(zlib.crc32(content + seen[content].to_bytes(4, "little")))
        seen[content] += 1
    return np.asarray(keys, np.uint32)
