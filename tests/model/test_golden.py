"""Weights and logits against golden files that transformers made (tests/make_golden.py)."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.model import forward, hf, load_pretrained, save_pretrained
from jaxrl_reason.rollout import sample
from tests.make_golden import CASES, GOLDEN, NEW_TOKENS
from tests.toys import on_virtual_devices, toy_config, toy_params

jitted_forward = jax.jit(forward, static_argnums=0)


def assert_same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_text_are_those_of_transformers(case):
    config, params = load_pretrained(str(GOLDEN / case))
    golden = np.load(GOLDEN / case / "golden.npz")
    logits = np.asarray(jitted_forward(config, params, golden["tokens"], golden["mask"]))
    assert logits.dtype == np.float32
    visible = golden["mask"]
    np.testing.assert_allclose(logits[visible], golden["logits"][visible], atol=1e-4, rtol=0)

    prompts = [row[mask].tolist() for row, mask in zip(golden["tokens"], visible, strict=True)]
    rollouts = sample(config, params, prompts, max_completion_length=NEW_TOKENS, temperature=0.0)
    np.testing.assert_array_equal(rollouts.tokens, golden["greedy"])


def test_the_golden_config_is_read_whole():
    config, params = load_pretrained(str(GOLDEN / "heads4_kv2_tied"))
    assert config == toy_config(
        vocab_size=56,
        hidden_size=20,
        head_dim=6,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        eos_token_ids=(54, 55),
    )
    assert config.num_tokens == 56
    assert "lm_head" not in params
    assert params["layers"]["self_attn"]["q_proj"]["kernel"].shape == (2, 20, 24)


def test_the_layout_of_transformers_4_gives_the_same_config(tmp_path):
    shutil.copytree(GOLDEN / "heads7_kv1_tied", tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
    raw["torch_dtype"] = raw.pop("dtype")
    del raw["layer_types"], raw["head_dim"]
    raw["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config, params = load_pretrained(str(tmp_path))
    expected, expected_params = load_pretrained(str(GOLDEN / "heads7_kv1_tied"))
    assert config == expected
    assert_same_params(params, expected_params)


@pytest.mark.parametrize("case", ["heads4_kv2_tied", "heads14_kv2_untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_and_reload_is_exact(case, dtype, tmp_path):
    config, params = load_pretrained(str(GOLDEN / case), dtype)
    save_pretrained(str(tmp_path), config, params)
    again_config, again = load_pretrained(str(tmp_path), dtype)
    assert again_config == config
    assert_same_params(again, params)
    assert not list(tmp_path.glob("*.tmp"))


def test_export_writes_the_tensors_it_read(tmp_path):
    case = GOLDEN / "heads14_kv2_untied"
    save_pretrained(str(tmp_path), *load_pretrained(str(case)))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, case))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, strict=True)


def test_several_files_equal_one(tmp_path, monkeypatch):
    config, params = load_pretrained(str(GOLDEN / "heads4_kv4_untied"))
    monkeypatch.setattr(hf, "SHARD_BYTES", 6000)
    save_pretrained(str(tmp_path), config, params)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    tensors = [load_file(file) for file in files]
    assert all(sum(t.nbytes for t in shard.values()) <= 6000 for shard in tensors)
    total = sum(t.nbytes for shard in tensors for t in shard.values())
    assert index["metadata"]["total_size"] == total
    assert_same_params(load_pretrained(str(tmp_path))[1], params)

    monkeypatch.undo()  # one file again: what several left behind must go
    save_pretrained(str(tmp_path), config, params)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    assert_same_params(load_pretrained(str(tmp_path))[1], params)


def test_files_and_parameters_may_differ_in_dtype(tmp_path):
    source = GOLDEN / "heads4_kv2_untied"
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    exact = load_pretrained(str(source))[1]
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)

    wide = load_pretrained(str(tmp_path), "float32")[1]  # bfloat16 files, float32 parameters
    assert_same_params(wide, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    narrow = load_pretrained(str(source), "bfloat16")[1]  # and the reverse
    assert_same_params(narrow, rounded)
    config, masters = load_pretrained(str(source), "bfloat16", param_dtype="float32")
    assert config.dtype == "bfloat16"
    assert_same_params(masters, exact)


def test_bfloat16_compute_is_near_float32():
    golden = np.load(GOLDEN / "heads4_kv2_untied" / "golden.npz")
    config, params = load_pretrained(str(GOLDEN / "heads4_kv2_untied"), "bfloat16")
    logits = jitted_forward(config, params, golden["tokens"], golden["mask"])
    assert logits.dtype == jnp.float32
    visible = golden["mask"]
    error = np.abs(np.asarray(logits)[visible] - golden["logits"][visible])
    assert error.mean() < 0.03


def test_the_tokenizer_files_travel_with_an_export(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "chat_template.jinja").write_text("{{ messages }}")
    config = toy_config()
    save_pretrained(str(tmp_path / "out"), config, toy_params(config), tokenizer_from=str(source))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_an_export_over_another_one_brings_its_own_tokenizer(tmp_path):
    config = toy_config()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat_template.jinja").write_text(name)
        out = str(tmp_path / "out")
        save_pretrained(out, config, toy_params(config), tokenizer_from=str(tmp_path / name))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "b"
    save_pretrained(out, config, toy_params(config), tokenizer_from=out)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "b"


def test_a_folder_with_a_config_is_complete(tmp_path, monkeypatch):
    config = toy_config()
    save_pretrained(str(tmp_path), config, toy_params(config))

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(str(tmp_path), config, toy_params(config))
    assert not (tmp_path / "config.json").exists()


def load_onto_mesh(folder):
    """Run in a process with 8 devices: parameters read slice by slice equal those read whole."""
    _, expected = load_pretrained(folder)
    for sizes in ({"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = mesh_lib.make_mesh(**({"data": 1} | sizes))
        shardings = functools.partial(mesh_lib.param_shardings, mesh)
        _, params = load_pretrained(folder, shardings=shardings)
        assert_same_params(params, expected)
        assert jax.tree.map(lambda x: x.sharding, params) == shardings(expected)
        kernel = params["layers"]["mlp"]["down_proj"]["kernel"]
        parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
        assert kernel.addressable_shards[0].data.size * parts == kernel.size
    print(len(jax.devices()))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_loading_straight_onto_a_mesh_equals_plain_loading(tied, tmp_path):
    config = toy_config(tie_word_embeddings=tied)
    save_pretrained(str(tmp_path), config, toy_params(config))
    assert on_virtual_devices(load_onto_mesh, str(tmp_path)).split() == ["8"]
