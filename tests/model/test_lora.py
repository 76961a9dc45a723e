"""Adapters: their arithmetic, the trees, merging, and the files in PEFT's layout."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.prompts import left_pad
from jaxrl_reason.model import forward, hf, init_params, load_pretrained, lora, save_pretrained
from jaxrl_reason.model.decoder import Linear, abstract_params, cast_params
from jaxrl_reason.rollout import sample
from jaxrl_reason.signals.score import score
from tests.toys import on_virtual_devices, random_rows, toy_config, toy_params

PROMPTS = [[4, 7, 9, 2], [5], [8, 8, 3, 6, 20, 11, 29]]
CONFIG = toy_config(lora_rank=3, lora_alpha=6.0)
PARAMS = toy_params(CONFIG)
BASE, ADAPTERS = lora.split(PARAMS)
TOKENS, MASK = random_rows(np.random.default_rng(1), (7, 3, 5), 7, 32, "left")

jitted_forward = jax.jit(forward, static_argnums=0)


def linear(x, kernel, a, b, *, bias=None, alpha=4.0):
    """`Linear` with given parameters, on one x."""
    d_in, rank = np.shape(a)
    module = Linear(
        (), d_in, np.shape(b)[1], bias=bias is not None, lora=(rank, alpha), rngs=nnx.Rngs(0)
    )
    given = {"kernel": kernel, "lora_a": a, "lora_b": b} | ({"bias": bias} if bias else {})
    graph, _ = nnx.split(module)
    return nnx.merge(graph, {name: jnp.asarray(v, jnp.float32) for name, v in given.items()})(x)


# The layer


@pytest.mark.parametrize("bias", [None, [10.0, -10.0, 0.0]])
def test_a_layer_by_hand(bias):
    x = jnp.array([[1.0, 2.0]])
    kernel = [[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]  # x·W = [1, 2, 0]
    a = [[1.0, 0.5], [1.0, -1.0]]  # x·A = [1 + 2, 0.5 − 2] = [3, −1.5]
    b = [[1.0, 0.0, 1.0], [2.0, 2.0, 0.0]]  # (x·A)·B = [3 − 3, −3, 3] = [0, −3, 3]
    expected = np.array([[1.0, 2.0 - 6.0, 6.0]])  # alpha/r = 4/2 times that, on top
    np.testing.assert_array_equal(
        linear(x, kernel, a, b, bias=bias), expected + np.array(bias or 0.0)
    )
    expected = np.array([[1.0, 2.0 - 1.5, 1.5]])  # alpha = 1
    np.testing.assert_array_equal(
        linear(x, kernel, a, b, bias=bias, alpha=1.0), expected + np.array(bias or 0.0)
    )


def test_a_layer_never_forms_the_product_of_its_adapter():
    d, rank = 64, 2
    a, b = jnp.ones((d, rank)), jnp.ones((rank, d))
    jaxpr = jax.make_jaxpr(functools.partial(linear, kernel=jnp.ones((d, d)), a=a, b=b))
    products = [e for e in jaxpr(jnp.ones((5, d))).eqns if e.primitive.name == "dot_general"]
    assert sorted(e.outvars[0].aval.shape for e in products) == [(5, rank), (5, d), (5, d)]


def test_a_layer_computes_in_the_dtype_of_its_input():
    y = linear(jnp.ones((1, 2), jnp.bfloat16), np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 3)))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_rank": -1}, "lora_rank: -1"),
        ({"lora_rank": 4}, "lora_alpha: 0.0"),
        ({"lora_rank": 4, "lora_alpha": -8.0}, "lora_alpha: -8.0"),
        ({"lora_rank": 4, "lora_alpha": float("nan")}, "lora_alpha: nan"),
    ],
)
def test_impossible_ranks_and_alphas(changes, named):
    with pytest.raises(ValueError, match=named):
        toy_config(**changes)


# The trees


def test_every_matrix_of_the_blocks_has_an_adapter_and_nothing_else_has():
    adapters = lora.abstract_adapters(CONFIG)
    assert adapters.keys() == {"layers"}
    assert {k: set(v) for k, v in adapters["layers"].items()} == {
        "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "mlp": {"gate_proj", "up_proj", "down_proj"},
    }
    down = adapters["layers"]["mlp"]["down_proj"]
    assert (down["lora_a"].shape, down["lora_b"].shape) == ((2, 24, 3), (2, 3, 16))
    for block, modules in adapters["layers"].items():
        for name, leaves in modules.items():
            layers, d_in, d_out = BASE["layers"][block][name]["kernel"].shape
            assert leaves["lora_a"].shape == (layers, d_in, 3)
            assert leaves["lora_b"].shape == (layers, 3, d_out)


def test_rank_0_is_the_model_without_adapters():
    config = toy_config()
    assert lora.without_lora(CONFIG) == config
    assert lora.abstract_adapters(config) == {}
    assert jax.tree.structure(abstract_params(config)) == jax.tree.structure(BASE)


def test_split_copies_nothing_and_combine_undoes_it():
    again = lora.combine(BASE, ADAPTERS)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(PARAMS), strict=True))
    ours = {id(x) for x in jax.tree.leaves(PARAMS)}
    base, adapters = ({id(x) for x in jax.tree.leaves(tree)} for tree in (BASE, ADAPTERS))
    assert base | adapters == ours
    assert not base & adapters
    assert BASE["embed_tokens"] is PARAMS["embed_tokens"]
    assert lora.combine(PARAMS, {}) is PARAMS
    assert lora.split(BASE)[1] == {}


def test_combine_replaces_adapters_and_leaves_its_arguments_alone():
    other = jax.tree.map(jnp.zeros_like, ADAPTERS)
    replaced = lora.combine(PARAMS, other)
    q = lambda tree: tree["layers"]["self_attn"]["q_proj"]["lora_a"]  # noqa: E731
    assert q(replaced) is q(other)
    assert q(PARAMS) is q(ADAPTERS)


def test_fresh_adapters_are_uniform_and_zero():
    config = toy_config(hidden_size=64, intermediate_size=256, lora_rank=16, lora_alpha=32.0)
    adapters = lora.init_adapters(config, 3)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), adapters) == jax.tree.map(
        lambda x: (x.shape, x.dtype), lora.abstract_adapters(config)
    )
    mlp = adapters["layers"]["mlp"]
    for name, bound in (("gate_proj", 1 / 8), ("down_proj", 1 / 16)):  # 1/√64, 1/√256
        a = np.asarray(mlp[name]["lora_a"])
        assert 0.98 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05)  # of U(−c, c): c/√3
        np.testing.assert_array_equal(mlp[name]["lora_b"], 0.0)
    assert not np.array_equal(mlp["gate_proj"]["lora_a"], mlp["up_proj"]["lora_a"])
    assert not np.array_equal(mlp["gate_proj"]["lora_a"][0], mlp["gate_proj"]["lora_a"][1])
    other = lora.init_adapters(config, 4)["layers"]["mlp"]["up_proj"]["lora_a"]
    assert not np.array_equal(mlp["up_proj"]["lora_a"], other)


def test_the_base_of_a_random_model_does_not_depend_on_the_rank():
    base, adapters = lora.split(init_params(CONFIG, 5))
    jax.tree.map(np.testing.assert_array_equal, base, init_params(lora.without_lora(CONFIG), 5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        adapters,
        lora.init_adapters(CONFIG, 5),
    )


# The function


def test_adapters_that_are_zero_or_off_give_exactly_the_logits_of_the_base():
    base = jitted_forward(lora.without_lora(CONFIG), BASE, TOKENS, MASK)
    fresh = lora.combine(BASE, lora.init_adapters(CONFIG, 0))
    np.testing.assert_array_equal(jitted_forward(CONFIG, fresh, TOKENS, MASK), base)
    with_adapters = jitted_forward(CONFIG, PARAMS, TOKENS, MASK)
    assert np.abs(np.asarray(with_adapters - base))[MASK].max() > 1e-2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_are_those_of_the_merged_model(seed, tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, lora_rank=seed + 1)
    params = toy_params(config, seed, scale=0.15)
    merged = lora.merge(config, params)
    assert lora.split(merged)[1] == {}
    theirs = jitted_forward(lora.without_lora(config), merged, TOKENS, MASK)
    ours = jitted_forward(config, params, TOKENS, MASK)
    base = jitted_forward(lora.without_lora(config), lora.split(params)[0], TOKENS, MASK)
    np.testing.assert_allclose(np.asarray(ours)[MASK], np.asarray(theirs)[MASK], atol=1e-5)
    assert np.abs(np.asarray(ours - base))[MASK].max() > 1e-2


def test_merging_is_done_in_float32_whatever_the_dtypes():
    half = cast_params(PARAMS, "bfloat16")
    merged = lora.merge(CONFIG, half)
    module = jax.tree.map(lambda x: np.asarray(x, np.float32), half["layers"]["mlp"]["up_proj"])
    product = np.einsum("lir,lro->lio", module["lora_a"], module["lora_b"])
    expected = module["kernel"] + 2.0 * product  # alpha/r = 6/3
    kernel = merged["layers"]["mlp"]["up_proj"]["kernel"]
    assert {str(x.dtype) for x in jax.tree.leaves(merged)} == {"float32"}
    np.testing.assert_allclose(kernel, expected, atol=1e-6)

    rounded = lora.merge(CONFIG, half, "bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(rounded)} == {"bfloat16"}
    np.testing.assert_array_equal(
        rounded["layers"]["mlp"]["up_proj"]["kernel"], kernel.astype(jnp.bfloat16)
    )


def test_merging_a_model_without_adapters_only_casts():
    merged = lora.merge(lora.without_lora(CONFIG), BASE)
    jax.tree.map(np.testing.assert_array_equal, merged, BASE)


@pytest.mark.parametrize("changes", [{"lora_rank": 2}, {"lora_rank": 0}])
def test_merging_adapters_of_another_rank_is_refused(changes):
    with pytest.raises(ValueError, match=r"layers/mlp/down_proj/lora_a: found \(2, 24, 3\)"):
        lora.merge(dataclasses.replace(CONFIG, **changes), PARAMS)


def rescore(config, params, rollouts, generations, **settings):
    tokens, mask = left_pad(PROMPTS, max(map(len, PROMPTS)), 0)
    tokens, mask = (np.repeat(x, generations, axis=0) for x in (tokens, mask))
    scorer = jax.jit(functools.partial(score, config, temperature=1.0, **settings))
    return scorer(params, tokens, mask, rollouts.tokens, rollouts.mask)[0]


def test_the_sampler_and_the_score_see_the_same_adapters():
    rollouts = sample(CONFIG, PARAMS, PROMPTS, 4, seed=2, max_completion_length=10)
    rescored = rescore(CONFIG, PARAMS, rollouts, 4)
    np.testing.assert_allclose(rollouts.logp, rescored, atol=1e-5)
    merged = lora.merge(CONFIG, PARAMS)
    base_config = lora.without_lora(CONFIG)
    np.testing.assert_allclose(rescored, rescore(base_config, merged, rollouts, 4), atol=1e-4)
    off = rescore(base_config, BASE, rollouts, 4)
    assert np.abs(np.asarray(rescored - off)).max() > 0.1


def loss(adapters, base, remat=False):
    """A scalar of the log-probs of the sequences' second parts."""
    logp, _ = score(
        CONFIG, lora.combine(base, adapters), TOKENS[:, :4], MASK[:, :4], TOKENS[:, 4:],
        MASK[:, 4:], temperature=1.0, remat=remat,
    )  # fmt: skip
    return jnp.sum(logp * jnp.arange(1.0, 4.0)[None])


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_of_the_adapters_alone(remat):
    gradient = jax.jit(jax.grad(functools.partial(loss, remat=remat)))(ADAPTERS, BASE)
    assert jax.tree.structure(gradient) == jax.tree.structure(ADAPTERS)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), ADAPTERS)
    norm = sum(float(np.sum(x * x)) for x in jax.tree.leaves(direction)) ** 0.5
    direction = jax.tree.map(lambda x: x / norm, direction)
    along = lambda t: loss(jax.tree.map(lambda a, d: a + t * d, ADAPTERS, direction), BASE)  # noqa: E731
    numeric = (along(1e-2) - along(-1e-2)) / 2e-2
    exact = sum(
        jnp.sum(g * d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(numeric, exact, rtol=2e-2)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(gradient))


def test_the_gradient_of_fresh_adapters_is_that_of_b_alone():
    """B = 0: dL/dA = xᵀ(dL/dy Bᵀ) = 0, dL/dB is not."""
    gradient = jax.jit(jax.grad(loss))(lora.init_adapters(CONFIG, 0), BASE)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(np.asarray(leaf)) == (path[-1].key == "lora_b")


# The files


@pytest.fixture
def folder(tmp_path):
    lora.save_adapters(str(tmp_path), CONFIG, ADAPTERS, "Qwen/Qwen2.5-0.5B")
    return tmp_path


def assert_same(a, b):
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), a, b)


def test_save_and_load_is_exact(folder):
    loaded = lora.load_adapters(str(folder), CONFIG)
    assert_same(loaded, ADAPTERS)
    assert sorted(file.name for file in folder.iterdir()) == [lora.CONFIG_FILE, lora.WEIGHT_FILE]
    half = cast_params(ADAPTERS, "bfloat16")
    lora.save_adapters(str(folder), CONFIG, half, None)
    assert_same(lora.load_adapters(str(folder), CONFIG), cast_params(half, "float32"))


def test_the_files_have_the_layout_of_peft(folder):
    raw = json.loads((folder / lora.CONFIG_FILE).read_text())
    assert raw["base_model_name_or_path"] == "Qwen/Qwen2.5-0.5B"
    assert (raw["peft_type"], raw["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (raw["r"], raw["lora_alpha"], raw["lora_dropout"], raw["bias"]) == (3, 6, 0.0, "none")
    assert raw["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    tensors = load_file(folder / lora.WEIGHT_FILE)
    assert len(tensors) == 2 * 7 * 2
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
    ours = ADAPTERS["layers"]["self_attn"]["k_proj"]
    assert tensors[name.format("A")].shape == (3, 16)
    assert tensors[name.format("B")].shape == (8, 3)
    np.testing.assert_array_equal(tensors[name.format("A")], ours["lora_a"][1].T)
    np.testing.assert_array_equal(tensors[name.format("B")], ours["lora_b"][1].T)


def test_a_folder_with_an_adapter_config_is_complete(folder, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        lora.save_adapters(str(folder), CONFIG, ADAPTERS, None)
    assert not (folder / lora.CONFIG_FILE).exists()


def test_only_the_adapters_of_the_config_are_saved(tmp_path):
    for tree, named in (
        (PARAMS, "embed_tokens: found"),
        ({}, r"lora_a: found None, a model with lora_rank 3 has \(2, 24, 3\)"),
        (lora.init_adapters(dataclasses.replace(CONFIG, lora_rank=2), 0), r"found \(2, 24, 2\)"),
    ):
        with pytest.raises(ValueError, match=named):
            lora.save_adapters(str(tmp_path), CONFIG, tree, None)
    with pytest.raises(ValueError, match="lora_rank: 0"):
        lora.save_adapters(str(tmp_path), lora.without_lora(CONFIG), {}, None)
    assert not list(tmp_path.iterdir())


def refused(folder, *named, config=CONFIG, error=ValueError):
    with pytest.raises(error) as caught:
        lora.load_adapters(str(folder), config)
    for text in (str(folder), *named):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"r": 4}, ("r is 4", "supported: 3")),
        ({"lora_alpha": 12}, ("lora_alpha is 12", "supported: 6")),
        ({"peft_type": "IA3"}, ("peft_type is 'IA3'", "'LORA'")),
        ({"task_type": "SEQ_CLS"}, ("task_type is 'SEQ_CLS'", "'CAUSAL_LM'")),
        ({"bias": "lora_only"}, ("bias is 'lora_only'", "'none'")),
        ({"init_lora_weights": "pissa_niter_4"}, ("init_lora_weights is 'pissa_niter_4'", "True")),
        ({"use_dora": True}, ("use_dora is True", "unset")),
        ({"use_rslora": True}, ("use_rslora is True", "unset")),
        ({"modules_to_save": ["lm_head"]}, ("modules_to_save is ['lm_head']", "unset")),
        ({"rank_pattern": {"q_proj": 8}}, ("rank_pattern", "q_proj", "unset")),
        ({"alpha_pattern": {"q_proj": 8}}, ("alpha_pattern", "q_proj", "unset")),
        ({"lora_bias": True}, ("lora_bias", "unset")),
        ({"layer_replication": [[0, 2]]}, ("layer_replication", "unset")),
        ({"a_variant_of_tomorrow": {"x": 1}}, ("a_variant_of_tomorrow", "unset")),
    ],
)
def test_unsupported_adapter_configs(folder, change, named):
    raw = json.loads((folder / lora.CONFIG_FILE).read_text()) | change
    (folder / lora.CONFIG_FILE).write_text(json.dumps(raw))
    refused(folder, lora.CONFIG_FILE, *named)


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha"])
def test_missing_keys(folder, key):
    raw = json.loads((folder / lora.CONFIG_FILE).read_text())
    del raw[key]
    (folder / lora.CONFIG_FILE).write_text(json.dumps(raw))
    refused(folder, lora.CONFIG_FILE, f"{key!r} is missing")


def test_what_peft_adds_to_its_config_is_read(folder):
    raw = json.loads((folder / lora.CONFIG_FILE).read_text())
    raw |= {"peft_version": "0.21.2", "megatron_core": "megatron.core", "qalora_group_size": 16}
    raw |= {"lora_dropout": 0.05, "loftq_config": {}, "revision": "main", "lora_bias": False}
    (folder / lora.CONFIG_FILE).write_text(json.dumps(raw))
    assert_same(lora.load_adapters(str(folder), CONFIG), ADAPTERS)


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(NAME), ("1 missing", NAME)),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((3, 16))}),
            ("1 surplus", "lm_head.lora_A"),
        ),
        (
            lambda t: t.update({NAME: np.ascontiguousarray(t[NAME].T)}),
            (NAME, "(16, 3)", "(3, 16)"),
        ),
        (lambda t: t.update({NAME: t[NAME].astype(np.int8)}), (NAME, "I8", "F32")),
    ],
)
def test_tensors_that_do_not_fit(folder, change, named):
    tensors = load_file(folder / lora.WEIGHT_FILE)
    change(tensors)
    save_file(tensors, folder / lora.WEIGHT_FILE)
    refused(folder, lora.WEIGHT_FILE, *named)


def test_adapters_of_another_model(folder):
    refused(folder, "missing", "layers.2.", config=dataclasses.replace(CONFIG, num_hidden_layers=3))
    refused(folder, "surplus", "layers.1.", config=dataclasses.replace(CONFIG, num_hidden_layers=1))
    refused(folder, "r is 3", "supported: 0", config=lora.without_lora(CONFIG))


def test_missing_files(folder, tmp_path):
    refused(tmp_path / "nowhere", lora.CONFIG_FILE, error=FileNotFoundError)
    (folder / lora.WEIGHT_FILE).unlink()
    refused(folder, lora.WEIGHT_FILE, error=FileNotFoundError)


def test_a_model_folder_holds_a_merged_model_and_no_adapters(tmp_path):
    with pytest.raises(ValueError, match="lora_rank: 3; a config.json"):
        save_pretrained(str(tmp_path), CONFIG, BASE)
    assert not (tmp_path / "config.json").exists()
    merged = lora.merge(CONFIG, PARAMS)
    save_pretrained(str(tmp_path), lora.without_lora(CONFIG), merged)
    config, params = load_pretrained(str(tmp_path))
    assert config == lora.without_lora(CONFIG)
    assert_same(params, merged)


# Many devices


def on_meshes(folder):
    """Run in a process with 8 devices: logits, gradients, merged weights and files of one device."""
    expected = jitted_forward(CONFIG, PARAMS, TOKENS, MASK)
    gradient = jax.jit(jax.grad(loss))(ADAPTERS, BASE)
    merged = lora.merge(CONFIG, PARAMS)
    lora.save_adapters(folder, CONFIG, ADAPTERS, None)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))

    for sizes in ({"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = mesh_lib.make_mesh(**({"data": 1} | sizes))
        base = jax.device_put(BASE, mesh_lib.param_shardings(mesh, BASE))
        shardings = functools.partial(mesh_lib.param_shardings, mesh)
        adapters = lora.load_adapters(folder, CONFIG, shardings=shardings)
        assert jax.tree.map(lambda x: x.sharding, adapters) == shardings(ADAPTERS)
        params = lora.combine(base, adapters)
        close(jitted_forward(CONFIG, params, TOKENS, MASK), expected)
        jax.tree.map(close, jax.jit(jax.grad(loss))(adapters, base), gradient)
        jax.tree.map(close, lora.merge(CONFIG, params), merged)
        down = adapters["layers"]["mlp"]["down_proj"]["lora_b"]
        assert down.addressable_shards[0].data.size * mesh.shape["fsdp"] == down.size
        lora.save_adapters(folder, CONFIG, adapters, None)
        jax.tree.map(np.testing.assert_array_equal, lora.load_adapters(folder, CONFIG), ADAPTERS)
    print(len(jax.devices()))


@pytest.mark.slow
def test_eight_devices_equal_one(tmp_path):
    assert on_virtual_devices(on_meshes, str(tmp_path)).split() == ["8"]
