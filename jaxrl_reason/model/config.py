"""ModelConfig: what the decoder needs to know of a Hugging Face `config.json`, and what it refuses."""

import dataclasses
import json
import os

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM"}  # model_type -> architecture
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a Qwen2.5 decoder; hashable, so it can be a static argument of `jax.jit`.

    `dtype` is the compute dtype (parameters may be kept in another). `num_tokens` is the number of ids
    the tokenizer can produce: `vocab_size` rows exist, ids in [num_tokens, vocab_size) are never sampled
    and carry no probability. `eos_token_ids` end a completion; there may be several. With `lora_rank`
    above 0 every linear layer of the blocks has an adapter of that rank (`model.lora`), whose output is
    scaled by lora_alpha / lora_rank.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    eos_token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    dtype: str = "float32"
    lora_rank: int = 0
    lora_alpha: float = 0.0

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is not one of {DTYPES}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim: {self.head_dim} is odd, rotary embeddings need an even one"
            )
        if not 0 <= self.num_tokens <= self.vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {self.num_tokens - 1}, the model only {self.vocab_size} rows"
            )
        if self.num_tokens == 0:
            object.__setattr__(self, "num_tokens", self.vocab_size)
        for token in self.eos_token_ids:
            if not 0 <= token < self.num_tokens:
                raise ValueError(f"eos_token_id: {token} is not a token id below {self.num_tokens}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank: {self.lora_rank} is below 0")
        if self.lora_rank and not 0 < self.lora_alpha < float("inf"):
            raise ValueError(
                f"lora_alpha: {self.lora_alpha} is not a finite number above 0, "
                f"as lora_rank {self.lora_rank} needs"
            )


def from_hf(raw: dict, where: str = "config.json", **known) -> ModelConfig:
    """ModelConfig from the dictionary of a `config.json`.

    Reads the layouts of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
    Raises ValueError naming `where`, the key, what was found and what is allowed.
    """

    def refuse(key, found, allowed):
        raise ValueError(f"{where}: {key} is {found!r}; supported: {allowed}")

    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        refuse("model_type", kind, ", ".join(ARCHITECTURES))
    architectures = raw.get("architectures") or [ARCHITECTURES[kind]]
    if architectures != [ARCHITECTURES[kind]]:
        refuse("architectures", architectures, [ARCHITECTURES[kind]])
    rope = {}
    for key in (
        "rope_parameters",
        "rope_scaling",
    ):  # both may stand there, and the second counts too
        found = raw.get(key) or {}
        rope_type = found.get("rope_type", found.get("type", "default"))
        if rope_type != "default":
            refuse(f"rope scaling ({key})", rope_type, "none (rope_type 'default')")
        rope |= found
    if raw.get("use_sliding_window", False):
        refuse("use_sliding_window", True, False)
    if any(kind != "full_attention" for kind in raw.get("layer_types") or []):
        refuse("layer_types", raw["layer_types"], "full_attention in every layer")
    if raw.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", raw["hidden_act"], "silu")
    if raw.get("quantization_config"):
        refuse("quantization_config", raw["quantization_config"], "none")

    def need(key):
        if raw.get(key) is None:
            raise ValueError(f"{where}: key {key!r} is missing")
        return raw[key]

    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{where}: key 'rope_theta' is missing")
    heads = need("num_attention_heads")
    if not raw.get("head_dim") and need("hidden_size") % heads:
        refuse("hidden_size", raw["hidden_size"], f"a multiple of num_attention_heads ({heads})")
    known.setdefault("eos_token_ids", as_ids(raw.get("eos_token_id")))
    try:
        return ModelConfig(
            vocab_size=need("vocab_size"),
            hidden_size=need("hidden_size"),
            intermediate_size=need("intermediate_size"),
            num_hidden_layers=need("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or need("hidden_size") // heads,
            rope_theta=float(theta),
            rms_norm_eps=float(need("rms_norm_eps")),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=raw.get("max_position_embeddings", 32768),
            **known,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_hf(config: ModelConfig, param_dtype: str) -> dict:
    """The dictionary of a `config.json` that transformers (4 and 5) reads as this model.

    Raises ValueError when the model has adapters, which no `config.json` can describe.
    """
    if config.lora_rank:
        raise ValueError(
            f"lora_rank: {config.lora_rank}; a config.json describes rank 0 only: merge the adapters "
            "or save them alone (model.lora)"
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "eos_token_id": as_entry(config.eos_token_ids),
        "torch_dtype": param_dtype,
    }


def read(folder: str, **known) -> ModelConfig:
    """ModelConfig of a Hugging Face folder; end tokens also from its `generation_config.json`."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{folder}: no config.json, so this is no Hugging Face model folder"
        )
    with open(path, encoding="utf-8") as f:
        raw = json.load(f)
    ends = set(as_ids(raw.get("eos_token_id")))
    generation = os.path.join(folder, "generation_config.json")
    if os.path.isfile(generation):
        with open(generation, encoding="utf-8") as f:
            ends |= set(as_ids(json.load(f).get("eos_token_id")))
    return from_hf(raw, path, eos_token_ids=tuple(sorted(ends)), **known)


def as_ids(value) -> tuple[int, ...]:
    """An `eos_token_id` entry, which may be absent, one id or a list, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def as_entry(ids: tuple[int, ...]) -> int | list[int] | None:
    """The inverse of `as_ids`, in the form that transformers keeps."""
    return ids[0] if len(ids) == 1 else (list(ids) or None)
