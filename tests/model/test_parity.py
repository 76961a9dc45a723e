"""Live comparison with transformers; needs PyTorch.

The real model's test reads the folder named by JAXRL_REASON_QWEN05B (Qwen2.5-Coder-0.5B-Instruct) and
gsm8k_test.jsonl in the folder named by JAXRL_REASON_DATA (default: shared/data beside the checkout).
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.data.prompts import make_prompts
from jaxrl_reason.data.tasks import load_source
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import forward, load_pretrained, save_pretrained
from jaxrl_reason.rollout import sample
from tests.make_golden import greedy_tokens, random_model, random_prompts, reference_logits
from tests.toys import REPOSITORY, toy_config, toy_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

REAL = os.environ.get("JAXRL_REASON_QWEN05B", "")
DATA = Path(os.environ.get("JAXRL_REASON_DATA", REPOSITORY.parent / "shared" / "data"))
LENGTHS = (17, 11, 4, 1)


def visible_difference(ours, theirs, mask):
    return np.abs(np.asarray(ours)[mask] - theirs[mask]).max()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("theta", [1e6, 1e4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (7, 1), (14, 2)])
def test_logits_and_greedy_text_of_random_models(heads, theta, tied, tmp_path):
    seed = 100 + 4 * heads[0] + 2 * heads[1] + tied
    model = random_model(*heads, 4, 4 * heads[0], tied, theta, seed=seed, layers=3)
    model.save_pretrained(tmp_path)
    tokens, mask = random_prompts(seed, LENGTHS)
    config, params = load_pretrained(str(tmp_path))
    theirs = reference_logits(model, tokens, mask)
    assert visible_difference(forward(config, params, tokens, mask), theirs, mask) < 1e-4

    prompts = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
    rollouts = sample(config, params, prompts, max_completion_length=12, temperature=0.0)
    np.testing.assert_array_equal(rollouts.tokens, greedy_tokens(model, tokens, mask, 12))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("eos", [(1,), (1, 3), ()])
def test_transformers_loads_what_we_export(tied, eos, tmp_path):
    config = toy_config(tie_word_embeddings=tied, eos_token_ids=eos, head_dim=6)
    params = toy_params(config)
    save_pretrained(str(tmp_path), config, params)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = {0: None, 1: 1, 2: [1, 3]}[len(eos)]
    assert model.config.eos_token_id == model.generation_config.eos_token_id == expected
    tokens, mask = random_prompts(5, LENGTHS)
    tokens = tokens % config.vocab_size
    ours = forward(config, params, tokens, mask)
    assert visible_difference(ours, reference_logits(model.eval(), tokens, mask), mask) < 1e-4


def test_a_bfloat16_export_is_loaded_as_bfloat16(tmp_path):
    config = toy_config()
    params = toy_params(config)
    save_pretrained(str(tmp_path / "a"), config, params)
    config, params = load_pretrained(str(tmp_path / "a"), "bfloat16")
    save_pretrained(str(tmp_path / "b"), config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert model.dtype == torch.bfloat16
    embedding = model.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(embedding, params["embed_tokens"].astype(jnp.float32))


@pytest.mark.skipif(not REAL, reason="JAXRL_REASON_QWEN05B names no folder")
def test_the_real_model_on_gsm8k(record_property):
    problems = load_source(str(DATA / "gsm8k_test.jsonl"), split="test")[:5]
    tokenizer = Tokenizer(REAL)
    reference = transformers.AutoTokenizer.from_pretrained(REAL)
    prompts = make_prompts(problems, tokenizer, "qwen_boxed", 256)
    config, params = load_pretrained(REAL)
    ours = np.asarray(forward(config, params, prompts.tokens, prompts.mask))
    rollouts = sample(config, params, prompts, max_completion_length=64, temperature=0.0)

    model = transformers.AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32).eval()
    for row, mask in zip(prompts.tokens, prompts.mask, strict=True):
        assert reference(reference.decode(row[mask]))["input_ids"] == row[mask].tolist()
    theirs = reference_logits(model, prompts.tokens, prompts.mask)
    difference = visible_difference(ours, theirs, prompts.mask)
    record_property("max_abs_logit_difference", float(difference))
    print(f"max |logit difference| {difference:.3g}, max |logit| {np.abs(theirs).max():.3g}")
    assert difference < 2e-3
    expected = greedy_tokens(model, prompts.tokens, prompts.mask, 64)
    same = np.mean(np.asarray(rollouts.tokens) == expected)
    print(f"greedy tokens identical: {same:.2%}; {tokenizer.decode(expected[0])!r}")
    np.testing.assert_array_equal(rollouts.tokens, expected)
