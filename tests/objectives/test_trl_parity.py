"""Side by side with TRL's own trainers (1.16), on the same numbers; needs PyTorch and TRL.

Real GRPOTrainer and RLOOTrainer objects around a model of one layer; only the model's log-probs, the
sampler and the reward functions are replaced by given numbers. Where TRL's conventions differ from ours:

- Defaults: TRL's `loss_type` is "dapo" and a recipe states its own here; both leave `beta` out of GRPO,
  TRL's RLOO starts at 0.05. eps beside σ is 1e-4 (our preset "trl"), 1e-6 here.
- Equal rewards: TRL divides float32 residue by eps (seven rewards of 100.3 get 0.07 each); here exactly 0.
- "grpo" is our `sequence_mean`, "bnpo" and "dapo" are `token_mean`, "dr_grpo" is `constant`. TRL counts
  rows without tokens in the denominators of "grpo" and "dr_grpo"; here they count nowhere. "bnpo" divides by
  the tokens of a micro-batch, so accumulation changes its gradient; `token_mean` is TRL's "dapo" there.
- `importance_sampling_level="sequence"`: one ratio per row and [B,T] advantages broadcast against it in TRL;
  here GSPO's token form, the same for one advantage per rollout. TRL's clip ratios count rows there, ours
  count tokens.
- `delta` caps ρ before the minimum with the clipped term. From 1 + epsilon_high on that is the dual clip.
- The entropy bonus is a token mean for every `loss_type` in TRL; here it has the weights of the loss.
- `top_entropy_quantile` keeps entropies ≥ the interpolated (1−ρ) quantile and leaves the denominator alone;
  `high_entropy_tokens` takes exactly ⌈ρ·N⌉, and the mask goes into the denominator as well.
- TRL multiplies the k3 term by ρ, gradient included (`use_bias_correction_kl`, on by default there); off for
  the comparison. Its k3 is neither clamped nor computed with expm1.
- RLOO's ratio and clip are of whole sequences, exp(Σ_t log-ratio), in TRL; here of tokens. Its advantages
  and its k1 penalty in the reward are the same.
- The soft overlong punishment with a cache of 0 is 0 or −1 in TRL; here it is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.advantages.group import PRESETS, group_advantages, leave_one_out_advantages
from jaxrl_reason.objectives.divergence import in_reward
from jaxrl_reason.objectives.surrogate import loss_weights, policy_loss
from jaxrl_reason.rewards.overlong import overlong_penalty
from jaxrl_reason.selection import high_entropy_tokens

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", minversion="1.16")
pytestmark = pytest.mark.parity

LONGEST = 12
REDUCTIONS = [
    ("grpo", "sequence_mean"),
    ("bnpo", "token_mean"),
    ("dapo", "token_mean"),
    ("dr_grpo", "constant"),
]


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory):
    """A factory of trainers: TRL's own constructor, and settings in TRL's names."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("trl")
    sizes = {"vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).save_pretrained(
        folder
    )  # the reference's source
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "q": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )

    def make(kind="GRPO", **settings):
        fixed = {"output_dir": str(folder / "out"), "report_to": [], "use_cpu": True, "bf16": False}
        settings = {"num_generations": 4, "max_completion_length": LONGEST} | settings
        if kind == "GRPO":
            settings = {"use_bias_correction_kl": False} | settings
        trainer = getattr(trl, f"{kind}Trainer")(
            model=Qwen2ForCausalLM.from_pretrained(folder),
            reward_funcs=lambda **_: None,
            args=getattr(trl, f"{kind}Config")(**fixed, **settings),
            train_dataset=Dataset.from_list([{"prompt": "q"}] * 8),
            processing_class=tokenizer,
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = settings.get("gradient_accumulation_steps", 1)
        return trainer

    return make


def batch(seed=0, rows=8, length=9):
    """Ragged rows, each with a token; ratios on both sides of every clip; dyadic advantages."""
    rng = np.random.default_rng(seed)
    draw = lambda scale: (rng.normal(size=(rows, length)) * scale).astype(np.float32)  # noqa: E731
    logp_old = -np.abs(draw(1.0)) - 0.5
    return {
        "logp": logp_old + draw(0.5),
        "logp_old": logp_old,
        "advantages": (rng.integers(-8, 9, rows) / 4).astype(np.float32),
        "mask": np.arange(length) < rng.integers(1, length + 1, rows)[:, None],
        "logp_ref": logp_old + draw(0.5),
        "entropy": np.abs(draw(1.0)),
    }


def their_loss(trainer, data, num_items=None):
    """(loss, gradient in the log-probs, gradient in the entropies, metrics) of TRL's `compute_loss`."""
    tensor = {name: torch.tensor(value) for name, value in data.items()}
    logp, entropy = tensor["logp"].requires_grad_(), tensor["entropy"].requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
    mask = tensor["mask"].long()
    inputs = {
        "prompt_ids": torch.full((len(mask), 1), 2),
        "prompt_mask": torch.ones((len(mask), 1), dtype=torch.long),
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": tensor["advantages"],
        "old_per_token_logps": tensor["logp_old"],
        "ref_per_token_logps": tensor["logp_ref"],
        "num_items_in_batch": mask.sum() if num_items is None else torch.tensor(num_items),
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    zero = torch.zeros_like(logp)
    gradients = [zero if x.grad is None else x.grad for x in (logp, entropy)]
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), *(g.numpy() for g in gradients), metrics


def our_loss(data, **settings):
    data = {name: jnp.asarray(value) for name, value in data.items()}

    def loss(logp, entropy):
        return policy_loss(
            logp, data["logp_old"], data["advantages"], data["mask"], logp_ref=data["logp_ref"],
            entropy=entropy, max_completion_length=LONGEST, **settings,
        )  # fmt: skip

    call = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, metrics), gradients = call(data["logp"], data["entropy"])
    means = {name: pair[0] / pair[1] for name, pair in metrics.items() if isinstance(pair, tuple)}
    return value, *gradients, means


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    for gradient, theirs_gradient in zip(ours[1:3], theirs[1:3], strict=True):
        np.testing.assert_allclose(gradient, theirs_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("theirs", "ours"), REDUCTIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epsilon": 0.2, "epsilon_high": 0.28},
        {"beta": 0.04},
        {"delta": 1.5},
        {"epsilon": 0.1, "epsilon_high": 0.3, "beta": 0.1, "delta": 1.4},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "default",
)
def test_loss_and_gradient(make_trainer, theirs, ours, settings):
    for seed in range(3):
        data = batch(seed)
        reference = their_loss(make_trainer(loss_type=theirs, **settings), data)
        value = our_loss(data, loss_type=ours, **settings)
        assert_same(value, reference)
        for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
            np.testing.assert_allclose(value[3][name], reference[3][name], rtol=1e-6)
        if "beta" in settings:
            np.testing.assert_allclose(value[3]["kl"], reference[3]["kl"], rtol=1e-5)


@pytest.mark.parametrize(("theirs", "ours"), REDUCTIONS)
@pytest.mark.parametrize("settings", [{}, {"epsilon": 3e-4, "epsilon_high": 4e-4}, {"beta": 0.04}])
def test_gspo(make_trainer, theirs, ours, settings):
    settings = {"importance_sampling_level": "sequence"} | settings
    for seed in range(3):
        data = batch(seed)
        reference = their_loss(make_trainer(loss_type=theirs, **settings), data)
        value = our_loss(data, loss_type=ours, **settings)
        assert_same(value, reference)


def test_the_batch_meets_every_clip():
    """The cases above would show nothing if no ratio left its range."""
    data = batch(0)
    ratio = np.exp(data["logp"] - data["logp_old"])[data["mask"]]
    positive = np.broadcast_to(data["advantages"][:, None] > 0, data["mask"].shape)[data["mask"]]
    assert (ratio > 1.28)[positive].any() and (ratio < 0.8)[~positive].any()
    assert (ratio > 1.5)[~positive].any()


def test_accumulated_dapo_is_the_token_mean_of_the_whole(make_trainer):
    """TRL's two micro-batches, normalised by the tokens of both; "bnpo" is another gradient."""
    data = batch(1)
    halves = [{name: value[i : i + 4] for name, value in data.items()} for i in (0, 4)]
    accumulating = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}

    def parts(loss_type):
        trainer = make_trainer(loss_type=loss_type, **accumulating)
        values = [their_loss(trainer, half, int(data["mask"].sum())) for half in halves]
        return sum(v[0] for v in values), np.concatenate([v[1] for v in values])

    weights = loss_weights(data["mask"], "token_mean")
    cut = [our_loss(h, weights=weights[i : i + 4]) for i, h in zip((0, 4), halves, strict=True)]
    value, gradient = sum(c[0] for c in cut), np.concatenate([c[1] for c in cut])
    theirs = parts("dapo")
    np.testing.assert_allclose(value, theirs[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs[1], rtol=1e-5, atol=1e-7)
    assert np.abs(parts("bnpo")[1] - gradient).max() > 1e-3


@pytest.mark.parametrize(("theirs", "ours"), [("bnpo", "token_mean"), ("dapo", "token_mean")])
def test_entropy_bonus_of_the_token_mean(make_trainer, theirs, ours):
    data = batch(2)
    reference = their_loss(make_trainer(loss_type=theirs, entropy_coef=0.05), data)
    value = our_loss(data, loss_type=ours, entropy_coef=0.05)
    assert_same(value, reference)
    assert np.abs(reference[2]).max() > 0


def test_high_entropy_tokens(make_trainer):
    """Without ties the sets agree where ρ·N falls between two ranks; our denominator is the set's size."""
    data = batch(3)
    total = int(data["mask"].sum())
    rho = 0.2 if (0.2 * (total - 1)) % 1 else 0.21
    trainer = make_trainer(loss_type="bnpo", top_entropy_quantile=rho)
    chosen = np.asarray(
        high_entropy_tokens(jnp.asarray(data["entropy"]), jnp.asarray(data["mask"]), rho)
    )
    reference = their_loss(trainer, data)
    theirs = trainer.get_high_entropy_mask(
        torch.tensor(data["entropy"]), torch.tensor(data["mask"]), 1 - rho
    ).numpy()
    # TRL's interpolated quantile keeps ⌊ρ·(N−1)⌋ + 1 tokens, ours ⌈ρ·N⌉: equal, or ours has one more
    assert chosen[theirs].all() and 0 <= chosen.sum() - theirs.sum() <= 1
    value = our_loss(data | {"mask": theirs}, loss_type="token_mean")
    np.testing.assert_allclose(value[0] * theirs.sum() / total, reference[0], rtol=1e-5)


def test_empty_rows_dilute_trl_and_not_us(make_trainer):
    data = batch(4)
    data["mask"][2] = False
    for theirs, ours in (("grpo", "sequence_mean"), ("dr_grpo", "constant")):
        reference = their_loss(make_trainer(loss_type=theirs), data)
        value = our_loss(data, loss_type=ours)
        np.testing.assert_allclose(value[0] * 7 / 8, reference[0], rtol=1e-5)
        np.testing.assert_allclose(value[1] * 7 / 8, reference[1], rtol=1e-5, atol=1e-7)


def their_advantages(trainer, reward, data=None):
    """The `advantages` of TRL's `_generate_and_score_completions` for given rewards and log-probs."""
    rows = len(reward)
    lengths = [1] * rows if data is None else data["mask"].sum(1)
    prompts, ids = [[2]] * rows, [[1] * int(n) for n in lengths]
    texts, width = [""] * rows, max(lengths)
    grpo = (prompts, ids, None, texts, None, {}, None, None)
    trainer._generate = lambda _: (
        (prompts, ids, texts) if isinstance(trainer, trl.RLOOTrainer) else grpo
    )
    trainer._calculate_rewards = lambda *_: torch.tensor(reward)[:, None]

    def logps(model, *_, **__):
        name = "logp_old" if model is trainer.model else "logp_ref"
        value = np.zeros((rows, width), np.float32) if data is None else data[name][:, :width]
        return torch.tensor(value), None, None

    trainer._get_per_token_logps_and_entropies = logps
    scored = trainer._generate_and_score_completions([{"prompt": "q"}] * rows)
    return scored["advantages"].numpy()


REWARDS = {
    "normal": np.random.default_rng(0).normal(size=32),
    "outcomes": np.random.default_rng(1).integers(0, 2, 32),
    "flat": np.repeat([0.0, 1.0], 16),
    "narrow": np.tile([0.0, 2e-4, 1e-4, 3e-4], 8),
}


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_advantages(make_trainer, rewards, scale, size):
    reward = REWARDS[rewards].astype(np.float32)
    named = {"std": "group", "none": "none"}
    trainer = make_trainer(num_generations=size, scale_rewards=named[scale])
    ddof, eps = PRESETS["trl"]
    ours = group_advantages(jnp.asarray(reward), size, scale, ddof, eps)
    np.testing.assert_allclose(ours, their_advantages(trainer, reward), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_leave_one_out_advantages(make_trainer, rewards, size):
    reward = REWARDS[rewards].astype(np.float32)
    theirs = their_advantages(make_trainer("RLOO", num_generations=size, beta=0.0), reward)
    ours = leave_one_out_advantages(jnp.asarray(reward), size)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_kl_penalty_in_the_reward(make_trainer):
    """TRL's RLOO: the reward less beta times the k1 of the whole sequence."""
    data, beta = batch(5), 0.05
    reward = np.random.default_rng(2).integers(0, 2, 8).astype(np.float32)
    theirs = their_advantages(make_trainer("RLOO", beta=beta), reward, data)
    old, ref, mask = (jnp.asarray(data[name]) for name in ("logp_old", "logp_ref", "mask"))
    penalised = jnp.asarray(reward) - beta * in_reward("k1", old, ref, mask)
    ours = leave_one_out_advantages(penalised, 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_equal_rewards_leave_a_residue_in_trl_only(make_trainer):
    reward = np.full(28, 100.3, np.float32)
    trainer = make_trainer(num_generations=7, per_device_train_batch_size=7)
    ddof, eps = PRESETS["trl"]
    assert np.abs(their_advantages(trainer, reward)).max() > 0.01
    np.testing.assert_array_equal(group_advantages(jnp.asarray(reward), 7, "std", ddof, eps), 0.0)


def test_defaults(make_trainer):
    trainer = make_trainer()
    assert (trainer.loss_type, trainer.beta, trainer.args.delta) == ("dapo", 0.0, None)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)
    assert make_trainer("RLOO").beta == 0.05
    assert trl.GRPOConfig(use_cpu=True, bf16=False).use_bias_correction_kl


def test_soft_overlong_punishment():
    from trl.rewards import get_soft_overlong_punishment

    lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 500]
    theirs = get_soft_overlong_punishment(100, 20)([[1] * n for n in lengths])
    np.testing.assert_allclose(overlong_penalty(jnp.array(lengths), 100, 20), theirs, atol=1e-6)
