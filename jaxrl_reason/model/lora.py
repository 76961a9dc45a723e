"""LoRA adapters as parameters of their own: split off, combined, merged; PEFT's files in and out.

Every linear layer of the blocks computes x·W (+ bias) + alpha/r · (x·A)·B (`decoder.Linear`). Adapters
are a nested dictionary with the parameters' paths and the leaves lora_a [L,d_in,r] and lora_b [L,r,d_out]
alone; the base is what remains. Base parameters with the config `without_lora` are the model with its
adapters off: the same arrays, no second copy.
"""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from jaxrl_reason.mesh import path_name
from jaxrl_reason.model import hf
from jaxrl_reason.model.config import ModelConfig
from jaxrl_reason.model.decoder import Params, abstract_params, init_params

PEFT_NAMES = {"lora_a": "lora_A", "lora_b": "lora_B"}
CONFIG_FILE, WEIGHT_FILE = "adapter_config.json", "adapter_model.safetensors"
# of an adapter_config.json: what says nothing about the function, or is seen in the tensors' names
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "target_modules",
}  # fmt: skip
ALLOWED = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others change the base too
}


def without_lora(config: ModelConfig) -> ModelConfig:
    """The config of the model with adapters off, or merged."""
    return dataclasses.replace(config, lora_rank=0, lora_alpha=0.0)


def split(params: Params) -> tuple[Params, Params]:
    """(base, adapters) of a tree of parameters, shapes or shardings; the leaves are passed on as they are."""
    base, adapters = {}, {}
    for key, value in params.items():
        if isinstance(value, dict):
            inner_base, inner_adapters = split(value)
            base |= {key: inner_base} if inner_base else {}
            adapters |= {key: inner_adapters} if inner_adapters else {}
        else:
            (adapters if key in PEFT_NAMES else base)[key] = value
    return base, adapters


def combine(base: Params, adapters: Params) -> Params:
    """The tree with the leaves of both, where both have one that of `adapters`; inverse of `split`."""
    if not adapters:
        return base
    out = dict(base)
    for key, value in adapters.items():
        out[key] = combine(base.get(key, {}), value) if isinstance(value, dict) else value
    return out


def abstract_adapters(config: ModelConfig) -> Params:
    """Shapes of the adapters, as `jax.ShapeDtypeStruct`; {} at rank 0."""
    return split(abstract_params(config))[1]


def init_adapters(config: ModelConfig, seed: int) -> Params:
    """float32 adapters that change nothing yet: A uniform in ±1/√d_in, B zero.

    Those of `init_params(config, seed)`; of the base, which nothing reads, jit allocates nothing.
    """
    return jax.jit(lambda: split(init_params(config, seed))[1])()


def merge(config: ModelConfig, params: Params, dtype="float32") -> Params:
    """Parameters of rank 0 with W + alpha/r · A·B in place of W, computed in float32, cast to `dtype`.

    Raises ValueError when the adapters in `params` are not those of `config`.
    """
    _check_shapes(config, split(params)[1])
    return _merge(params, config.lora_alpha / max(config.lora_rank, 1), jnp.dtype(dtype))


def _merge(tree, scale, dtype):
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out[key] = _merge(value, scale, dtype)
        elif key == "kernel" and "lora_a" in tree:
            out[key] = _merged_kernel(value, tree["lora_a"], tree["lora_b"], scale).astype(dtype)
        elif key not in PEFT_NAMES:
            out[key] = value.astype(dtype)
    return out


def _merged_kernel(kernel, a, b, scale):
    kernel, a, b = (x.astype(jnp.float32) for x in (kernel, a, b))
    # by default TPUs and GPUs multiply float32 matrices in fewer bits
    return kernel + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check_shapes(config, adapters):
    found, expected = (
        {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (adapters, abstract_adapters(config))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"adapter {name}: found {found.get(name)}, a model with lora_rank "
                f"{config.lora_rank} has {expected.get(name)}"
            )


def save_adapters(
    folder: str, config: ModelConfig, adapters: Params, base_model_name: str | None
) -> None:
    """Write the adapters as `peft.PeftModel.from_pretrained(base model, folder)` reads them.

    Tensors keep their dtype. Files are written beside their final names and renamed, the weights first:
    a folder with an adapter_config.json is complete. Raises ValueError when these are not the adapters
    of `config`.
    """
    if not config.lora_rank:
        raise ValueError("lora_rank: 0, so there are no adapters to save")
    _check_shapes(config, adapters)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        host = np.asarray(jax.device_get(leaf))
        for name, matrix in zip(_names(path, config), host, strict=True):
            tensors[name] = np.ascontiguousarray(matrix.T)
    os.makedirs(folder, exist_ok=True)
    if os.path.isfile(os.path.join(folder, CONFIG_FILE)):
        os.remove(os.path.join(folder, CONFIG_FILE))
    hf.save_tensors(folder, WEIGHT_FILE, tensors)
    hf.write_json(folder, CONFIG_FILE, _peft_config(config, base_model_name))


def load_adapters(folder: str, config: ModelConfig, *, shardings=None) -> Params:
    """Adapters, float32, of a folder that PEFT or `save_adapters` wrote.

    `shardings` is a function from the abstract adapters to a tree of `jax.sharding.Sharding`. Raises
    FileNotFoundError or ValueError that name the file, the key or tensor, what was found and what is
    allowed: rank or alpha other than the config's, any variant of LoRA, missing, surplus, ill-shaped or
    quantized tensors.
    """
    template = abstract_adapters(config)
    _check_config(os.path.join(folder, CONFIG_FILE), config)
    tensors = _read_tensors(os.path.join(folder, WEIGHT_FILE), template, config)

    def load(path, leaf, sharding=None):
        stacked = np.stack([tensors[name].T for name in _names(path, config)]).astype(leaf.dtype)
        if sharding is None:
            return jnp.asarray(stacked)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: stacked[index])

    rest = (shardings(template),) if shardings else ()
    return jax.tree_util.tree_map_with_path(load, template, *rest)


def _names(path, config: ModelConfig) -> list[str]:
    """PEFT's names of the tensors, one per layer, that make up one adapter leaf; they are transposed."""
    *_, block, module, leaf = (entry.key for entry in path)
    return [
        f"base_model.model.model.layers.{i}.{block}.{module}.{PEFT_NAMES[leaf]}.weight"
        for i in range(config.num_hidden_layers)
    ]


def _peft_config(config: ModelConfig, base_model_name: str | None) -> dict:
    layers = abstract_adapters(config)["layers"]
    alpha = config.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": config.lora_rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(module for block in layers.values() for module in block),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _check_config(path: str, config: ModelConfig) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file, so this is no folder with adapters")
    with open(path, encoding="utf-8") as f:
        raw = json.load(f)
    allowed = ALLOWED | {"r": (config.lora_rank,), "lora_alpha": (config.lora_alpha,)}
    for key in ("peft_type", "r", "lora_alpha"):
        if key not in raw:
            raise ValueError(f"{path}: key {key!r} is missing")
    for key, found in raw.items():
        if key in allowed:
            if found not in allowed[key]:
                choices = ", ".join(map(repr, allowed[key]))
                raise ValueError(f"{path}: {key} is {found!r}; supported: {choices}")
        elif key not in HARMLESS and found:
            raise ValueError(f"{path}: {key} is {found!r}; supported: unset")


def _read_tensors(path: str, template: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """All tensors of the file, which are the template's by name and shape."""
    expected = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(template):
        expected |= dict.fromkeys(_names(key_path, config), leaf.shape[:0:-1])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such weight file (safetensors only)")
    with safe_open(path, "numpy") as file:
        found = set(file.keys())
        for kind, names in (
            ("missing", expected.keys() - found),
            ("surplus", found - expected.keys()),
        ):
            if names:
                shown = ", ".join(sorted(names)[:5])
                raise ValueError(f"{path}: {len(names)} {kind} tensor(s): {shown}")
        for name, shape in expected.items():
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in hf.FILE_DTYPES:
                raise ValueError(
                    f"{path}: {name} has dtype {tensor.get_dtype()}; supported: {hf.FILE_DTYPES}"
                )
            if tuple(tensor.get_shape()) != shape:
                actual = tuple(tensor.get_shape())
                raise ValueError(f"{path}: {name} has shape {actual}, the model asks for {shape}")
        return {name: file.get_tensor(name) for name in expected}
