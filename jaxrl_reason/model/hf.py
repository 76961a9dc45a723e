"""Hugging Face folders: safetensors in, straight onto the mesh; safetensors out, for transformers."""

import contextlib
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxrl_reason.model import config as model_config
from jaxrl_reason.model.config import ModelConfig
from jaxrl_reason.model.decoder import Params, abstract_params

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
SHARD_BYTES = 5 * 10**9
FILE_DTYPES = ("F32", "BF16", "F16")  # others are quantized weights, or none
# Written by some exporters, recomputed by every reader
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def load_pretrained(
    folder: str, dtype: str = "float32", *, param_dtype: str | None = None, shardings=None
) -> tuple[ModelConfig, Params]:
    """Configuration and parameters of a Qwen2.5 folder (one or many safetensors files).

    `dtype` is the compute dtype and, unless `param_dtype` says otherwise, that of the parameters.
    `shardings` is a function from the abstract parameters to a tree of `jax.sharding.Sharding`: each
    device then reads just its own slices of the files. Raises FileNotFoundError or ValueError that name
    the file, the tensor or the key: unsupported architecture, missing, surplus, ill-shaped or quantized
    tensor.
    """
    config = model_config.read(folder, dtype=dtype, num_tokens=tokenizer_size(folder))
    template = abstract_params(config)
    target = jnp.dtype(param_dtype or dtype)
    with contextlib.ExitStack() as stack:
        files = _open_files(folder, stack)
        _check_tensors(folder, config, template, files)
        sharding_tree = shardings(template) if shardings else jax.tree.map(lambda _: None, template)

        def load(path, leaf, sharding):
            read = _reader(path, leaf, files, target)
            if sharding is None:
                return jnp.asarray(read((slice(None),) * len(leaf.shape)))
            return jax.make_array_from_callback(leaf.shape, sharding, read)

        params = jax.tree_util.tree_map_with_path(
            load, template, sharding_tree, is_leaf=lambda x: x is None
        )
        return config, jax.block_until_ready(params)


def save_pretrained(
    folder: str, config: ModelConfig, params: Params, tokenizer_from: str | None = None
) -> None:
    """Write config.json and safetensors that transformers loads; tokenizer files copied if given.

    Files are written beside their final names and renamed, weights before config.json: a folder with a
    config.json is complete. Tensors keep the dtype of `params`; files hold at most 5 GB each.
    """
    os.makedirs(folder, exist_ok=True)
    if os.path.isfile(os.path.join(folder, "config.json")):
        os.remove(os.path.join(folder, "config.json"))
    if tokenizer_from and not os.path.samefile(tokenizer_from, folder):
        for name in TOKENIZER_FILES:
            source = os.path.join(tokenizer_from, name)
            if os.path.isfile(source):
                shutil.copyfile(source, os.path.join(folder, name))
    shards: list[dict] = [{}]
    size = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names, transpose = hf_names(path, config.num_hidden_layers)
        stacked = "{}" in _pattern(path)
        host = np.asarray(jax.device_get(leaf))
        for i, name in enumerate(names):
            tensor = host[i] if stacked else host
            tensor = np.ascontiguousarray(tensor.T if transpose else tensor)
            if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
    for name in os.listdir(folder):
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", name):
            os.remove(os.path.join(folder, name))
    if len(shards) == 1:
        save_tensors(folder, "model.safetensors", shards[0])
    else:
        weight_map = {}
        for i, shard in enumerate(shards):
            name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            save_tensors(folder, name, shard)
            weight_map |= dict.fromkeys(shard, name)
        total = sum(t.nbytes for shard in shards for t in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder, "model.safetensors.index.json", index)
    write_json(folder, "generation_config.json", _generation_config(config, tokenizer_from))
    param_dtype = str(jax.tree.leaves(params)[0].dtype)
    write_json(folder, "config.json", model_config.to_hf(config, param_dtype))


def tokenizer_size(folder: str) -> int:
    """Largest token id of the folder's tokenizer plus one; 0 when the folder has no tokenizer."""
    path = os.path.join(folder, "tokenizer.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            raw = json.load(f)
        vocab = raw["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        return max(ids + [token["id"] for token in raw.get("added_tokens", [])]) + 1
    path = os.path.join(folder, "tokenizer.model")
    if os.path.isfile(path):
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=path).get_piece_size()
    return 0


def _pattern(path) -> str:
    """HF tensor name of a parameter path, `{}` where the layer index goes."""
    keys = [entry.key for entry in path]
    if keys == ["lm_head", "kernel"]:
        return "lm_head.weight"
    if keys[0] == "layers":
        keys[0] = "layers.{}"
    if keys[-1] in ("kernel", "scale"):
        keys[-1] = "weight"
    elif keys == ["embed_tokens"]:
        keys.append("weight")
    return "model." + ".".join(keys)


def hf_names(path, num_layers: int) -> tuple[list[str], bool]:
    """Names of the Hugging Face tensors that make up one parameter, and whether they are transposed."""
    pattern = _pattern(path)
    layers = range(num_layers) if "{}" in pattern else [0]
    return [pattern.format(i) for i in layers], path[-1].key == "kernel"


def _reader(path, leaf, files, dtype):
    """Callback of `jax.make_array_from_callback`: reads one slice of a (stacked) parameter."""
    stacked = "{}" in _pattern(path)
    names, transpose = hf_names(path, leaf.shape[0])

    def read(index):
        layers, rest = (index[0], index[1:]) if stacked else (slice(0, 1), index)
        source = rest[::-1] if transpose else rest
        parts = [files[name].get_slice(name)[source] for name in names[layers]]
        parts = [(part.T if transpose else part).astype(dtype) for part in parts]
        return np.stack(parts) if stacked else parts[0]

    return read


def _open_files(folder, stack) -> dict:
    """Tensor name -> open safetensors file."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.isfile(index):
        with open(index, encoding="utf-8") as f:
            names = sorted(set(json.load(f)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    files = {}
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such weight file (safetensors only)")
        handle = stack.enter_context(safe_open(path, "numpy"))
        for tensor in handle.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
            if tensor in files:
                raise ValueError(f"{path}: tensor {tensor} stands in two files")
            files[tensor] = handle
    return files


def _check_tensors(folder, config, template, files):
    expected = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        names, transpose = hf_names(path, config.num_hidden_layers)
        shape = leaf.shape[1:] if "{}" in _pattern(path) else leaf.shape
        expected |= dict.fromkeys(names, shape[::-1] if transpose else shape)
    found = {name for name in files if not name.endswith(IGNORED_SUFFIXES)}
    if config.tie_word_embeddings and "lm_head.weight" in found:
        _check_tied(folder, files)
        found.remove("lm_head.weight")
    for kind, names in (("missing", expected.keys() - found), ("surplus", found - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise ValueError(f"{folder}: {len(names)} {kind} tensor(s): {shown}")
    for name, shape in expected.items():
        tensor = files[name].get_slice(name)
        if tensor.get_dtype() not in FILE_DTYPES:
            raise ValueError(
                f"{folder}: {name} has dtype {tensor.get_dtype()}; supported: {FILE_DTYPES}"
            )
        actual = tuple(tensor.get_shape())
        if actual != tuple(shape):
            raise ValueError(
                f"{folder}: {name} has shape {actual}, config.json asks for {tuple(shape)}"
            )


def _check_tied(folder, files):
    head, embedding = (
        files[name].get_tensor(name) for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    if head.shape != embedding.shape or not np.array_equal(head, embedding):
        raise ValueError(
            f"{folder}: tie_word_embeddings is true, yet lm_head.weight differs from "
            "model.embed_tokens.weight"
        )


def _generation_config(config: ModelConfig, source: str | None) -> dict:
    """The source folder's generation settings with this model's end tokens."""
    settings = {}
    path = os.path.join(source or "", "generation_config.json")
    if source and os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            settings = json.load(f)
    if config.eos_token_ids:
        settings["eos_token_id"] = model_config.as_entry(config.eos_token_ids)
    return settings


def save_tensors(folder, name, tensors):
    """A safetensors file, complete or absent."""
    path = os.path.join(folder, name)
    save_file(tensors, path + ".tmp", metadata={"format": "pt"})
    os.chmod(path + ".tmp", 0o644)  # safetensors makes it readable by its owner alone
    os.replace(path + ".tmp", path)


def write_json(folder, name, value):
    """A JSON file, complete or absent."""
    path = os.path.join(folder, name)
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
    os.replace(path + ".tmp", path)
