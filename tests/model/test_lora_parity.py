"""Live comparison of the adapters with PEFT on transformers; needs PyTorch."""

import jax
import numpy as np
import pytest

from jaxrl_reason.model import config as model_config
from jaxrl_reason.model import forward, load_pretrained, lora
from jaxrl_reason.model.hf import save_pretrained
from tests.make_golden import random_model, random_prompts, reference_logits
from tests.toys import toy_config, toy_params

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

LENGTHS = (17, 11, 4, 1)
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def visible_difference(ours, theirs, mask):
    return np.abs(np.asarray(ours)[mask] - theirs[mask]).max()


def peft_model(tied, seed, **settings):
    """A random Qwen2 model of 3 layers with PEFT's adapters, whose B are random too."""
    model = random_model(4, 2, 6, 20, tied, 1e4, seed=seed, layers=3)
    torch.manual_seed(seed)
    settings = {"target_modules": MODULES, "init_lora_weights": False} | settings
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **settings)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alpha", [6.0, 2.5])
def test_peft_loads_what_we_save(tied, alpha, tmp_path):
    config = toy_config(tie_word_embeddings=tied, head_dim=6, lora_rank=3, lora_alpha=alpha)
    params = toy_params(config, scale=0.2)
    base, adapters = lora.split(params)
    save_pretrained(str(tmp_path / "base"), lora.without_lora(config), base)
    lora.save_adapters(str(tmp_path / "lora"), config, adapters, str(tmp_path / "base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    tokens, mask = random_prompts(5, LENGTHS)
    tokens = tokens % config.vocab_size
    theirs = reference_logits(model, tokens, mask)
    assert visible_difference(forward(config, params, tokens, mask), theirs, mask) < 1e-4
    with model.disable_adapter():
        theirs_off = reference_logits(model, tokens, mask)
    ours_off = forward(lora.without_lora(config), base, tokens, mask)
    assert visible_difference(ours_off, theirs_off, mask) < 1e-4
    assert visible_difference(theirs, theirs_off, mask) > 0.1


def test_the_folder_alone_tells_peft_where_the_base_is(tmp_path):
    config = toy_config(lora_rank=2, lora_alpha=4.0)
    base, adapters = lora.split(toy_params(config))
    save_pretrained(str(tmp_path / "base"), lora.without_lora(config), base)
    lora.save_adapters(str(tmp_path / "lora"), config, adapters, str(tmp_path / "base"))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")
    assert isinstance(model, peft.PeftModelForCausalLM)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target_modules", [MODULES, "all-linear"])
def test_we_load_what_peft_saves(tied, target_modules, tmp_path):
    model = peft_model(tied, seed=7, target_modules=target_modules)
    tokens, mask = random_prompts(7, LENGTHS)
    theirs = reference_logits(model, tokens, mask)
    model.save_pretrained(tmp_path / "lora")
    model.unload().save_pretrained(tmp_path / "base")
    base_config, base = load_pretrained(str(tmp_path / "base"))
    config = model_config.read(str(tmp_path / "base"), lora_rank=3, lora_alpha=5.0)
    assert lora.without_lora(config) == base_config
    params = lora.combine(base, lora.load_adapters(str(tmp_path / "lora"), config))
    assert visible_difference(forward(config, params, tokens, mask), theirs, mask) < 1e-4
    off = forward(base_config, base, tokens, mask)
    assert visible_difference(off, theirs, mask) > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_merging_equals_that_of_peft(tied, tmp_path):
    model = peft_model(tied, seed=8)
    model.save_pretrained(tmp_path / "lora")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    fresh = peft_model(tied, seed=8)
    fresh.unload().save_pretrained(tmp_path / "base")
    _, base = load_pretrained(str(tmp_path / "base"))
    config = model_config.read(str(tmp_path / "base"), lora_rank=3, lora_alpha=5.0)
    params = lora.combine(base, lora.load_adapters(str(tmp_path / "lora"), config))
    _, theirs = load_pretrained(str(tmp_path / "merged"))
    ours = lora.merge(config, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), ours, theirs)
    kernel = "layers", "mlp", "down_proj", "kernel"
    pick = lambda tree: np.asarray(tree[kernel[0]][kernel[1]][kernel[2]][kernel[3]])  # noqa: E731
    assert np.abs(pick(theirs) - pick(base)).max() > 0.01


def test_variants_of_lora_are_refused(tmp_path):
    config = model_config.ModelConfig(**(vars(toy_config()) | {"lora_rank": 3, "lora_alpha": 5.0}))
    for key in ("use_dora", "use_rslora"):
        peft_model(True, seed=9, **{key: True}).save_pretrained(tmp_path / key)
        with pytest.raises(ValueError, match=key):
            lora.load_adapters(str(tmp_path / key), config)


def test_fresh_adapters_are_spread_as_those_of_peft():
    model = peft_model(True, seed=10, init_lora_weights=True)
    down = model.base_model.model.model.layers[0].mlp.down_proj.lora_A["default"].weight
    bound = 24**-0.5  # intermediate_size
    assert 0.8 * bound < down.abs().max().item() <= bound
