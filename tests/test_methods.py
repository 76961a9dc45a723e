"""Every method through the training program; what only shows with a model."""

import json
import math
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxrl_reason.recipes import RECIPES
from tests.test_train import ROOT, SMALL, command, content, rows, run, without_timings

METHODS = sorted(
    name for name in RECIPES if os.path.exists(os.path.join(ROOT, "configs", f"{name}.py"))
)


def train(method, folder, *args, steps=2):
    small = [*SMALL, f"--config.num_steps={steps}", "--config.learner.micro_batch_size=8", *args]
    done = run(command("train", str(folder), *small, config=f"configs/{method}.py:model=tiny"))
    assert done.returncode == 0, done.stderr
    return done, rows(folder)


def test_every_recipe_has_a_config_file():
    assert sorted(RECIPES) == METHODS
    for name in METHODS:
        text = content(os.path.join(ROOT, "configs", f"{name}.py")).decode()
        for part in (
            "Paper:",
            "Departures:",
            f"--config=configs/{name}.py",
            "Expect on the embedded",
        ):
            assert part in text, (name, part)
        assert "EXPECT_" not in text, name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_steps(tmp_path, method):
    _, log = train(method, tmp_path, "--config.log.rollouts_every=0")
    for row in log:
        for name in ("loss", "grad_norm", "reward", "entropy", "accuracy"):
            assert row[name] is not None and math.isfinite(row[name]), name
        assert row["optimizer/skipped_updates"] == 0
    assert log[0]["grad_norm"] > 0


def test_dynamic_sampling_keeps_mixed_groups_and_counts_the_rest(tmp_path):
    done, log = train("dapo", tmp_path, "--config.algorithm.max_resample=2", steps=3)
    outcomes = rows(tmp_path, "outcomes.jsonl")
    for row, outcome in zip(log, outcomes, strict=True):
        assert row["sampling/generated_prompts"] == len(outcome["id"]) in (8, 16, 24)
        assert row["sampling/kept_prompts"] == sum(outcome["kept"]) <= 8
        for count, kept in zip(outcome["num_correct"], outcome["kept"], strict=True):
            assert 0 < count < 4 or not kept
        # accuracy is that of everything that was sampled, the reward that of what is trained on
        total = 4 * len(outcome["id"])
        assert row["accuracy"] == pytest.approx(sum(outcome["num_correct"]) / total)
        assert row["frac_reward_zero_std"] == 0
        assert row["useful_rollouts"] == 1
    short = [r["step"] for r in log if r["sampling/kept_prompts"] < 8]
    for step in short:
        assert f"step {step}: " in done.stderr and "algorithm.max_resample" in done.stderr
    assert max(r["sampling/generated_prompts"] for r in log) > 8
    ids = [i for outcome in outcomes for i in outcome["id"]]
    assert len(set(ids)) == len(ids)  # no prompt is drawn twice, none is skipped
    assert sorted(int(i.rsplit("-")[-1]) for i in ids)[0] >= 0


def test_mini_batches_move_the_policy_between_them(tmp_path):
    _, log = train("gspo", tmp_path, "--config.algorithm.num_mini_batches=4")
    assert log[0]["policy/ratio_deviation/max"] > 1e-6
    assert log[0]["clip_ratio/region_mean"] > 0  # the range is that narrow


def test_lora_trains_adapters_alone_and_exports_them(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    lora = [
        "--config.lora.rank=4",
        "--config.lora.alpha=8",
        "--config.optimizer.learning_rate=0.01",
    ]
    _, log = train("erpo", one, *lora, steps=4)
    # π_0 is the model with adapters off: nothing has drifted before the first update, and then it has
    assert log[0]["ispo/drift_fraction"] == 0 and log[0]["kl"] < 1e-10
    assert log[-1]["kl"] > 1e-6
    # a run in two parts is the run in one
    train("erpo", two, *lora)
    done, _ = train("erpo", two, *lora, steps=4)
    assert "continuing" in done.stdout
    assert [without_timings(r) for r in rows(one)] == [without_timings(r) for r in rows(two)]

    def export(*args):
        return run([*command("export", one)[:3], f"--workdir={one}", *args])

    assert export().returncode == 0
    mixed = export("--merged", f"--out={one / 'export'}")
    assert mixed.returncode != 0 and "adapter_config.json" in mixed.stderr
    assert sorted(os.listdir(one / "export")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    adapters = load_file(one / "export" / "adapter_model.safetensors")
    assert all(a.shape[0 if "lora_A" in n else 1] == 4 for n, a in adapters.items())
    assert json.loads(content(one / "export" / "adapter_config.json"))["r"] == 4
    out = tmp_path / "merged"
    assert export("--merged", f"--out={out}").returncode == 0
    start = load_file(os.path.join(ROOT, "jaxrl_reason", "embedded", "tiny", "model.safetensors"))
    merged = load_file(out / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapters[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(
        merged[f"{name}.weight"], start[f"{name}.weight"] + 8 / 4 * b @ a, atol=1e-6
    )
    for kept in ("model.norm.weight", "model.embed_tokens.weight"):
        np.testing.assert_array_equal(merged[kept], start[kept])
    # the checkpoint holds adapters and their moments, not the base
    count = sum(a.size for a in adapters.values())
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(one / "checkpoints" / "4")
        for name in names
    )
    assert size < 3 * 4 * count + 500_000 < 4 * sum(a.size for a in start.values())


def test_a_recipe_whose_problems_lack_what_it_reads_is_refused(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "a", "problem": "Compute 1+1.", "answer": "2"}\n')
    for config, named in (
        (f"configs/scaf_grpo.py:model=tiny,task={path}", "no problem of"),
        ("configs/scaf_grpo.py:model=tiny,task=countdown", "have no hints"),
        ("configs/pacr.py:model=tiny,task=countdown", "needs a reference answer"),
    ):
        done = run(command("train", str(tmp_path / "run"), *SMALL, config=config))
        assert done.returncode != 0
        assert "data.source" in done.stderr and named in done.stderr
