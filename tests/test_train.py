"""The training program end to end: resuming after a kill, refusals, and what a run folder holds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = [
    "--config.rollout.num_prompts=8",
    "--config.rollout.num_generations=4",
    "--config.learner.micro_batch_size=16",
    "--config.eval.num_problems=8",
    "--config.eval.num_generations=0",
    "--config.eval.batch_size=8",
    "--config.verifier.num_workers=1",
    "--config.log.rollouts_every=2",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every=2",
]
TIMINGS = ("seconds/", "step_time")


def command(main, workdir, *args, config="configs/ispo.py:model=tiny,task=arithmetic"):
    return [
        sys.executable, "-m", f"jaxrl_reason.{main}", f"--config={config}", f"--workdir={workdir}", *args,
    ]  # fmt: skip


def run(args, **kwargs):
    return subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=600, **kwargs)


def rows(workdir, name="metrics.jsonl"):
    path = os.path.join(workdir, name)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


def without_timings(row):
    return {k: v for k, v in row.items() if not k.startswith(TIMINGS)}


def content(path):
    with open(path, "rb") as f:
        return f.read()


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    args = [*SMALL, "--config.num_steps=8"]
    done = run(command("train", whole, *args))
    assert done.returncode == 0, done.stderr
    assert "after" in done.stdout
    assert "learning curve" in done.stdout

    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command("train", killed, *args), cwd=ROOT, stdout=log, stderr=log
        )
        while len(rows(killed)) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= len(rows(killed)) < 8
    again = run(command("train", killed, *args))
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stdout

    assert [without_timings(r) for r in rows(killed)] == [without_timings(r) for r in rows(whole)]
    assert [r["step"] for r in rows(whole)] == list(range(1, 9))
    assert rows(killed, "outcomes.jsonl") == rows(whole, "outcomes.jsonl")
    assert rows(killed, "rollouts/step_8.jsonl") == rows(whole, "rollouts/step_8.jsonl")
    for folder in (whole, killed):
        args = [sys.executable, "-m", "jaxrl_reason.export", f"--workdir={folder}"]
        done = run(args)
        assert done.returncode == 0, done.stderr
    one, other = (content(f"{folder}/export/model.safetensors") for folder in (whole, killed))
    assert one == other
    start = content(os.path.join(ROOT, "jaxrl_reason", "embedded", "tiny", "model.safetensors"))
    assert one != start  # something was learnt at all

    # a finished run is not trained further, and a changed one is refused by name
    done = run(command("train", whole, *SMALL, "--config.num_steps=8", "--config.ispo.lambda1=0.7"))
    assert done.returncode != 0
    assert "ispo.lambda1" in done.stderr
    assert "0.7" in done.stderr


def test_first_step_of_ispo_is_its_limit_case(tmp_path):
    """At step 1 π_old = π_0: no drift, no critical token, token reward 0; and the ratio is 1."""
    done = run(command("train", str(tmp_path), *SMALL, "--config.num_steps=1"))
    assert done.returncode == 0, done.stderr
    (row,) = rows(str(tmp_path))
    assert row["ispo/drift_fraction"] == 0
    assert row["ispo/critical_fraction"] == 0
    assert row["ispo/token_term"] == 0
    assert row["policy/ratio_deviation/max"] <= 1e-6
    assert row["policy/rescoring_gap/max"] <= 1e-4
    assert row["sampling/sampling_logp_difference/max"] <= 1e-4
    assert row["verifier/timeout"] == row["verifier/error"] == 0
    record = rows(str(tmp_path), "rollouts/step_1.jsonl")[0]
    rollout = record["rollouts"][0]
    assert len(rollout["tokens"]) == len(rollout["signals"]["entropy"])
    assert rollout["terms"].keys() == {"ifd", "token"}


@pytest.mark.parametrize(
    ("arg", "named"),
    [
        ("--config.model.path=/no/such/folder", "/no/such/folder"),
        ("--config.algorithm.recipe=ppo", "error: algorithm.recipe: 'ppo' is not allowed"),
        ("--config.rollout.group_size=4", "error: rollout.group_size: unknown config key"),
        ("--config.learner.micro_batch_size=7", "learner.micro_batch_size"),
        ("--config.algorithm.std_floor=-1", "algorithm.std_floor"),
        ("--config.data.source=problems.csv", "problems.csv"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, arg, named):
    done = run(command("train", str(tmp_path), *SMALL, arg))
    assert done.returncode != 0
    assert named in done.stderr
    assert not os.path.exists(tmp_path / "metrics.jsonl")


def test_updates_that_are_not_finite_stop_the_run(tmp_path):
    """A rate of 1e30 leaves parameters whose logits overflow; two skipped updates in a row are enough."""
    args = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_steps=0"]
    limit = "--config.optimizer.max_skipped_in_row=2"
    done = run(command("train", str(tmp_path), *SMALL, *args, limit, "--config.num_steps=8"))
    assert done.returncode != 0
    assert "optimizer.max_skipped_in_row" in done.stderr
    assert "update skipped" in done.stderr
    log = rows(str(tmp_path))
    assert [r["optimizer/skipped_updates"] for r in log] == [0, 1, 2]
    assert log[-1]["loss"] is None  # null, not a number that looks like one


def test_two_updates_a_step_and_prompts_that_are_too_long(tmp_path):
    length = "--config.data.max_prompt_length=17"
    twice = "--config.algorithm.num_iterations=2"
    done = run(command("train", str(tmp_path), *SMALL, length, twice, "--config.num_steps=2"))
    assert done.returncode == 0, done.stderr
    log = rows(str(tmp_path))
    assert log[0]["policy/ratio_deviation/max"] > 1e-6  # the second update is off-policy
    assert 0 < log[0]["data/prompts_too_long"] < log[1]["data/prompts_too_long"]
    assert (
        len(rows(str(tmp_path), "outcomes.jsonl")[0]["id"]) == 8
    )  # the batch is full all the same


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Two processes of one device each, joined by jax.distributed, make the steps of one process."""
    args = [*SMALL, "--config.num_steps=3"]
    one = run(command("train", str(tmp_path / "one"), *args))
    assert one.returncode == 0, one.stderr
    launch = [os.path.join(ROOT, "launch", "local_multiprocess.sh"), "2"]
    two = run([*launch, *command("train", str(tmp_path / "two"), *args)])
    assert two.returncode == 0, two.stderr
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["completions/mean_length"] == b["completions/mean_length"]
        for name in ("accuracy", "reward", "entropy", "loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4)
