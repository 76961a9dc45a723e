"""Qwen2.5 as Flax NNX modules, and the pure functions of its parameters that the rest of the code calls.

Parameters are a nested dictionary of arrays; those of the layers carry a leading layer axis and are
scanned. Matrices are stored [in, out]. Modules never leave this file: `forward_hidden`, `forward` and
`decode_step` take (config, params, …).
"""

import functools
import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason.model import attention
from jaxrl_reason.model.config import ModelConfig

Params = dict  # nested dictionary of arrays


class Linear(nnx.Module):
    """y = x·kernel (+ bias) (+ alpha/r · (x·lora_a)·lora_b); `stack` prepends the layer axis to all.

    `lora` is (r, alpha). At the start lora_a is uniform in ±1/√d_in, as in PEFT, and lora_b zero.
    """

    def __init__(self, stack, d_in, d_out, *, bias=False, lora=(0, 0.0), rngs):
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (*stack, d_in, d_out)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*stack, d_out)))
        rank, alpha = lora
        if rank:
            bound = d_in**-0.5
            self.lora_a = nnx.Param(
                jax.random.uniform(rngs.lora(), (*stack, d_in, rank), minval=-bound, maxval=bound)
            )
            self.lora_b = nnx.Param(jnp.zeros((*stack, rank, d_out)))
            self.lora_scale = alpha / rank

    def __call__(self, x):
        y = x @ self.kernel[...].astype(x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(x.dtype)
        if hasattr(self, "lora_scale"):
            low = x @ self.lora_a[...].astype(x.dtype)
            y = y + self.lora_scale * (low @ self.lora_b[...].astype(x.dtype))
        return y


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, then the learnt scale."""

    def __init__(self, stack, size, eps):
        self.scale = nnx.Param(jnp.ones((*stack, size)))
        self.eps = eps

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Projections of grouped-query attention; the caller decides what the queries look at."""

    def __init__(self, c: ModelConfig, stack, rngs):
        q_size, kv_size = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        shared = {"lora": (c.lora_rank, c.lora_alpha), "rngs": rngs}
        self.q_proj = Linear(stack, c.hidden_size, q_size, bias=True, **shared)
        self.k_proj = Linear(stack, c.hidden_size, kv_size, bias=True, **shared)
        self.v_proj = Linear(stack, c.hidden_size, kv_size, bias=True, **shared)
        self.o_proj = Linear(stack, q_size, c.hidden_size, **shared)
        self.head_dim = c.head_dim

    def __call__(self, x, rotary, attend):
        q, k, v = (
            proj(x).reshape(*x.shape[:2], -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, cache = attend(attention.rotate(q, *rotary), attention.rotate(k, *rotary), v)
        return self.o_proj(out.reshape(*x.shape[:2], -1)), cache


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, c: ModelConfig, stack, rngs):
        shared = {"lora": (c.lora_rank, c.lora_alpha), "rngs": rngs}
        self.gate_proj = Linear(stack, c.hidden_size, c.intermediate_size, **shared)
        self.up_proj = Linear(stack, c.hidden_size, c.intermediate_size, **shared)
        self.down_proj = Linear(stack, c.intermediate_size, c.hidden_size, **shared)

    def __call__(self, x):
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One decoder layer. `attend(q, k, v) -> (out, cache)` closes over masks and the KV cache."""

    def __init__(self, c: ModelConfig, stack, rngs):
        self.input_layernorm = RMSNorm(stack, c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, stack, rngs)
        self.post_attention_layernorm = RMSNorm(stack, c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c, stack, rngs)

    def __call__(self, x, rotary, attend):
        out, cache = self.self_attn(self.input_layernorm(x), rotary, attend)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm and, when untied, the output head."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (c.vocab_size, c.hidden_size))
        )
        self.layers = Block(c, (c.num_hidden_layers,), rngs)
        self.norm = RMSNorm((), c.hidden_size, c.rms_norm_eps)
        if not c.tie_word_embeddings:
            self.lm_head = Linear((), c.hidden_size, c.vocab_size, rngs=rngs)


@functools.cache
def _abstract(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))


@functools.cache
def _block_graph(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: Block(config, (), nnx.Rngs(0))))[0]


@functools.cache
def _norm_graph(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: RMSNorm((), config.hidden_size, config.rms_norm_eps)))[
        0
    ]


def abstract_params(config: ModelConfig) -> Params:
    """Shapes of all parameters, as `jax.ShapeDtypeStruct`, without allocating any."""
    return nnx.to_pure_dict(_abstract(config)[1])


def init_params(config: ModelConfig, seed: int) -> Params:
    """Random float32 parameters: normal(0, 0.02) matrices, zero biases, unit norms, adapters as `Linear`.

    Adapters draw from keys of their own: the other parameters are the same at every rank.
    """
    adapter_key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"lora"))
    return nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(seed, lora=adapter_key)))[1])


def cast_params(params: Params, dtype) -> Params:
    """All parameters in another dtype (a copy where it differs)."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def output_head(config: ModelConfig, params: Params) -> Float[Array, "D V"]:
    """The matrix that turns hidden states into logits, tied or not."""
    return params["embed_tokens"].T if config.tie_word_embeddings else params["lm_head"]["kernel"]


def positions_of(attention_mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """0-based positions that count visible tokens only, so left padding shifts nothing."""
    return jnp.maximum(jnp.cumsum(attention_mask.astype(jnp.int32), axis=-1) - 1, 0)


def forward_hidden(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    attention_mask: Bool[Array, "B S"],
    *,
    remat: bool = False,
    with_cache: bool = False,
):
    """Hidden states after the final norm, [B,S,D] in the compute dtype.

    With `with_cache` also the keys and values of all layers, each [L,B,S,M,h]. `remat` recomputes each
    layer in the backward pass instead of keeping its activations. Values at masked positions are
    finite and meaningless.
    """
    attention_mask = attention_mask.astype(bool)
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal[None] & attention_mask[:, None, :]
    turn = attention.rotary(positions_of(attention_mask), config.head_dim, config.rope_theta)
    graph = _block_graph(config)

    def attend(q, k, v):
        return attention.attend(q, k, v, visible), (k, v) if with_cache else None

    def layer(x, layer_params):
        return nnx.merge(graph, layer_params)(x, turn, attend)

    x = params["embed_tokens"][tokens].astype(config.dtype)
    x, cache = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, params["layers"])
    x = _final_norm(config, params, x)
    return (x, cache) if with_cache else x


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"] | Bool[Array, "B S"],
) -> Float[Array, "B S V"]:
    """Logits, float32, of every row of the vocabulary (also ids the tokenizer lacks).

    For inspection and parity tests; training reads log-probs through `model.logprobs`, which never
    holds an array of this shape.
    """
    hidden = forward_hidden(config, params, tokens, attention_mask)
    head = output_head(config, params).astype(hidden.dtype)
    return jnp.einsum("bsd,dv->bsv", hidden, head, preferred_element_type=jnp.float32)


def unstack_layers(config: ModelConfig, params: Params) -> list[Params]:
    """One dictionary per layer. Decoding unrolls the layers: a scan would copy the cache every step."""
    return [
        jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.num_hidden_layers)
    ]


def decode_step(
    config: ModelConfig,
    params: Params,
    layers: list[Params],
    token: Int[Array, " B"],
    positions: Int[Array, " B"],
    prompt_cache: tuple,
    prompt_mask: Bool[Array, "P S"],
    cache: list[tuple],
    step: Int[Array, ""],
):
    """Hidden state [B,D] of one new token per row, and the cache with its keys and values at `step`.

    `prompt_cache` holds keys and values [L,P,S,M,h], once per prompt; `cache` one pair [B,T,M,h] per
    layer, of which slots 0..step are visible afterwards. `positions` are the rotary positions.
    """
    turn = attention.rotary(positions[:, None], config.head_dim, config.rope_theta)
    graph = _block_graph(config)
    rows, length = cache[0][0].shape[:2]
    visible = jnp.broadcast_to(jnp.arange(length)[None] <= step, (rows, length))
    x = params["embed_tokens"][token[:, None]].astype(config.dtype)
    new_cache = []
    for i, layer_params in enumerate(layers):

        def attend(q, k, v, i=i):
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, step, axis=1)
                for old, new in zip(cache[i], (k, v), strict=True)
            )
            prompt_k, prompt_v = prompt_cache[0][i], prompt_cache[1][i]
            out = attention.attend_shared_prompt(
                q[:, 0], prompt_k, prompt_v, prompt_mask, keys, values, visible
            )
            return out[:, None], (keys, values)

        x, layer_cache = nnx.merge(graph, layer_params)(x, turn, attend)
        new_cache.append(layer_cache)
    return _final_norm(config, params, x)[:, 0], new_cache


def _final_norm(config, params, x):
    return nnx.merge(_norm_graph(config), params["norm"])(x)
