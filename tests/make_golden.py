"""Make tests/data_files/golden: tiny random Qwen2 models, their logits and greedy texts by transformers.

    python -m tests.make_golden [OUT_DIR]

Needs PyTorch. The same files come out every time; tests/model/test_golden.py reads them.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "data_files" / "golden"
VOCAB_SIZE, END_TOKENS = 56, [54, 55]
LENGTHS = (9, 6, 1)  # tokens of the left-padded prompts
NEW_TOKENS = 8

# name -> attention heads, key/value heads, head size, hidden size, tied embeddings, rope_theta
CASES = {
    "heads4_kv4_tied": (4, 4, 4, 16, True, 1e6),
    "heads4_kv4_untied": (4, 4, 4, 16, False, 1e4),
    "heads4_kv2_tied": (4, 2, 6, 20, True, 1e4),  # heads · head size is not the hidden size
    "heads4_kv2_untied": (4, 2, 4, 16, False, 1e6),
    "heads7_kv1_tied": (7, 1, 4, 28, True, 1e6),
    "heads14_kv2_untied": (14, 2, 2, 28, False, 1e4),
}


def random_model(heads, kv_heads, head_dim, hidden, tied, theta, seed, layers=2):
    """A Qwen2ForCausalLM with random matrices, norms and non-zero biases, float32, in eval mode."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied,
        eos_token_id=END_TOKENS,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).eval().to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
    return model


def random_prompts(seed, lengths=LENGTHS):
    """Left-padded ids and mask; the ids under a 0 of the mask are random too."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB_SIZE, (len(lengths), max(lengths)))
    mask = np.arange(max(lengths))[None] >= max(lengths) - np.array(lengths)[:, None]
    return tokens, mask


def reference_logits(model, tokens, mask):
    """Logits of transformers, [B,S,V] float32; positions count visible tokens."""
    import torch

    positions = np.maximum(np.cumsum(mask, axis=-1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            position_ids=torch.tensor(positions),
        )
    return out.logits.float().numpy()


def greedy_tokens(model, tokens, mask, new_tokens):
    """The greedy continuation by transformers, [B,new_tokens]; 0 after the end token."""
    import torch
    from transformers import GenerationConfig

    # of the folder's own settings only the end tokens: a repetition penalty would change greedy texts
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=model.generation_config.eos_token_id,
    )
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            generation_config=settings,
        )
    out = out[:, tokens.shape[1] :].numpy()
    return np.pad(out, ((0, 0), (0, new_tokens - out.shape[1])))


def main(out: Path) -> None:
    for seed, (name, shape) in enumerate(CASES.items()):
        model = random_model(*shape, seed=seed)
        model.save_pretrained(out / name)
        (out / name / "generation_config.json").unlink(missing_ok=True)
        tokens, mask = random_prompts(seed)
        np.savez(
            out / name / "golden.npz",
            tokens=tokens.astype(np.int32),
            mask=mask,
            logits=reference_logits(model, tokens, mask),
            greedy=greedy_tokens(model, tokens, mask, NEW_TOKENS).astype(np.int32),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
