"""What load_pretrained refuses, and that the message names the file, the tensor or key, and the value."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_reason.model import config as model_config
from jaxrl_reason.model import load_pretrained, save_pretrained
from tests.make_golden import GOLDEN
from tests.toys import toy_config, toy_params


@pytest.fixture(scope="module", params=["untied", "tied"])
def saved(request, tmp_path_factory):
    """A sound folder's config and tensors."""
    folder = tmp_path_factory.mktemp(request.param)
    config = toy_config(tie_word_embeddings=request.param == "tied")
    save_pretrained(str(folder), config, toy_params(config))
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture
def write(saved, tmp_path):
    """Function (change of the config, change of the tensors) -> folder."""

    def write(change_config=None, change_tensors=None):
        raw, tensors = dict(saved[0]), dict(saved[1])
        if change_config:
            change_config(raw)
        if change_tensors:
            change_tensors(tensors)
        (tmp_path / "config.json").write_text(json.dumps(raw))
        save_file(tensors, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


def refused(folder, *named, error=ValueError):
    with pytest.raises(error) as caught:
        load_pretrained(folder)
    for text in named:
        assert text in str(caught.value)


def test_the_sound_folder_is_loaded(write):
    config, params = load_pretrained(write())
    assert params["embed_tokens"].shape == (config.vocab_size, config.hidden_size)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "llama"}, ("model_type", "'llama'", "qwen2")),
        ({"model_type": None}, ("model_type", "None", "qwen2")),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, ("architectures", "Qwen2MoeForCausalLM")),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ("rope scaling", "linear")),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ("rope scaling", "yarn")),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            ("rope scaling", "dynamic"),
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            },
            ("rope scaling", "yarn"),
        ),
        ({"use_sliding_window": True, "sliding_window": 8}, ("use_sliding_window", "True")),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ("layer_types", "sliding_attention"),
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantization_config", "gptq")),
        ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "silu")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "3", "4")),
        ({"head_dim": 3}, ("head_dim", "3")),
        ({"head_dim": None, "hidden_size": 18}, ("hidden_size", "18", "4")),
        ({"eos_token_id": 32}, ("eos_token_id", "32")),
        ({"eos_token_id": [1, 77]}, ("eos_token_id", "77")),
    ],
)
def test_unsupported_configs(write, change, named):
    folder = write(lambda raw: raw.update(change))
    refused(folder, "config.json", *named)


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rope_theta",
        "rms_norm_eps",
    ],
)
def test_missing_keys(write, key):
    refused(write(lambda raw: raw.pop(key)), "config.json", key)


def test_missing_tensors(write):
    name = "model.layers.1.self_attn.k_proj.bias"
    folder = write(change_tensors=lambda tensors: tensors.pop(name))
    refused(folder, folder, "1 missing", name)


def test_surplus_tensors(write):
    name = "model.layers.0.self_attn.o_proj.bias"
    folder = write(change_tensors=lambda tensors: tensors.update({name: np.zeros(16, np.float32)}))
    refused(folder, folder, "1 surplus", name)


def test_too_many_layers_in_the_file(write):
    folder = write(lambda raw: raw.update(num_hidden_layers=1))
    refused(folder, "surplus", "model.layers.1.")


def test_ill_shaped_tensors(write):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = write(
        change_tensors=lambda t: t.update({name: np.ascontiguousarray(t[name].T)}),
    )
    refused(folder, folder, name, "(16, 24)", "(24, 16)")


def test_tensors_that_hold_no_floats(write):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = write(change_tensors=lambda t: t.update({name: t[name].astype(np.int8)}))
    refused(folder, folder, name, "I8")


def test_recomputed_buffers_are_ignored(write):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _, plain = load_pretrained(write())
    _, params = load_pretrained(
        write(change_tensors=lambda t: t.update({name: np.zeros(2, np.float32)}))
    )
    jax.tree.map(np.testing.assert_array_equal, params, plain)


@pytest.mark.parametrize("saved", ["tied"], indirect=True)
def test_a_tied_head_must_equal_the_embedding(write):
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    load_pretrained(write(change_tensors=lambda t: t.update({head: t[embedding]})))
    folder = write(change_tensors=lambda t: t.update({head: t[embedding] + 1}))
    refused(folder, folder, "tie_word_embeddings", head, embedding)


@pytest.mark.parametrize("saved", ["untied"], indirect=True)
def test_an_untied_head_must_be_there(write):
    folder = write(change_tensors=lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, "missing", "lm_head.weight")


def test_missing_files(write, tmp_path):
    refused(str(tmp_path / "nowhere"), "nowhere", "config.json", error=FileNotFoundError)
    folder = write()
    (tmp_path / "model.safetensors").unlink()
    refused(folder, "model.safetensors", error=FileNotFoundError)


def test_a_missing_shard(write, tmp_path):
    folder = write()
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model-00002-of-00002.safetensors", error=FileNotFoundError)


def test_a_tensor_in_two_files(write, tmp_path):
    folder = write()
    (tmp_path / "twice.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    index = {"weight_map": {"a": "model.safetensors", "b": "twice.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "twice.safetensors", "two files")


def test_a_tokenizer_larger_than_the_model(write, tmp_path):
    folder = write()
    tokenizer = {"model": {"vocab": {"a": 0, "b": 32}}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(folder, "config.json", "32")


def test_dtypes():
    with pytest.raises(ValueError, match="dtype: 'int8'"):
        load_pretrained(str(GOLDEN / "heads4_kv2_tied"), "int8")


def test_end_tokens_come_from_both_files(tmp_path):
    config = toy_config(eos_token_ids=(5,))
    save_pretrained(str(tmp_path), config, toy_params(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    assert model_config.read(str(tmp_path)).eos_token_ids == (3, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert model_config.read(str(tmp_path)).eos_token_ids == (5, 7)
