"""Train a policy with verifiable rewards.

    python -m jaxrl_reason.train --config=configs/ispo.py:model=tiny,task=arithmetic --workdir=runs/ispo

Starting again with the same --workdir continues at the next step. The run folder then holds
config.json, metrics.jsonl, outcomes.jsonl, tensorboard/, checkpoints/, rollouts/, eval/ and
learning_curve.png.
"""

import dataclasses
import json
import os

import numpy as np
from absl import flags

from jaxrl_reason import diagnostics, learner, setup, workdir
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.experience import Collector, rollout_records
from jaxrl_reason.masked import merge_metrics
from jaxrl_reason.metrics import JsonlLog, PhaseTimer, TensorBoardLog, finalise
from jaxrl_reason.report import curve
from jaxrl_reason.report.console import Console, print_table, results_table
from jaxrl_reason.training import HeldOut, build, restore
from jaxrl_reason.verify import VerifierPool

GAP = "policy/rescoring_gap/max"  # of the first update alone: later ones have moved the policy
WARNING_STEPS = 3  # how many first steps are checked for dense terms that outweigh the outcome


def train(config: TrainConfig, folder: str) -> None:
    """Run, or continue, a training run in `folder`."""
    first = setup.is_first_process()
    resolved, defaults = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
    workdir.claim(folder, "train", resolved, defaults, write=False)
    parts = build(config)
    state, start, num_tokens, checkpoints = restore(config, folder, parts)
    workdir.claim(folder, "train", resolved, defaults, write=first)

    with (
        VerifierPool(config.verifier.num_workers, config.verifier.timeout_s) as pool,
        Console(config.num_steps, start, quiet=not first) as console,
    ):
        collect = Collector(config, parts, pool)
        evaluate = HeldOut(config, parts, pool, folder)
        logs = open_logs(config, folder, start) if first else []
        outcomes = JsonlLog(os.path.join(folder, "outcomes.jsonl"), start) if first else None
        if parts.too_long:
            console.say(f"{parts.too_long} problems left out: their prompts are too long")
        if start:
            console.say(f"continuing {folder} after step {start}")
        else:
            console.say(f"before: {greedy(evaluate('before', 0, state)):.3f} greedy_pass@1")

        for step in range(start + 1, config.num_steps + 1):
            timer = PhaseTimer()
            experience = collect(state.params, step, timer)
            with timer("update"):
                state, update_metrics = optimise(config, parts, state, experience.batch)
            num_tokens += experience.gathered.num_tokens

            row = finalise(experience.metrics | update_metrics) | counters(parts, state)
            row |= {"step": step, "num_tokens": num_tokens}
            score = row["accuracy"]  # what "best" means: training accuracy, or that of evaluations
            if config.eval_every:
                score = None
                if step % config.eval_every == 0 or step == config.num_steps:
                    name = "after" if step == config.num_steps else f"step_{step}"
                    with timer("eval"):
                        score = row["eval/greedy_pass@1"] = greedy(evaluate(name, step, state))
            row |= timer.metrics()
            for log in logs:
                log.write(row)
            if first:
                outcomes.write(outcome_row(step, experience))
                write_rollouts(folder, config, experience, step, parts.tokenizer)
            console.step(step, row)
            warn(console, config, step, row)
            stop_if_broken(config, step, state)
            if is_save_step(config, step):
                extra = {"stream": parts.stream.state(), "num_tokens": num_tokens}
                checkpoints.save(step, state, extra | {"weights": parts.weights}, score)

        after = evaluate("after", config.num_steps, state)
        checkpoints.close()
        for log in [*logs, *filter(None, [outcomes])]:
            log.close()
    if first:
        show_results(config, folder, parts, after)


def optimise(config: TrainConfig, parts, state, batch: dict):
    """(state, metrics on the host) after all optimiser steps on one batch of rollouts."""
    algorithm = config.algorithm
    placed = [
        mesh_lib.put_batch(
            parts.mesh, learner.split_micro(part, config.learner.micro_batch_size), axis=1
        )
        for part in learner.mini_batches(batch, algorithm.num_mini_batches)
    ]
    metrics = None
    for part in placed * algorithm.num_iterations:
        state, own = parts.update(state, part, parts.frozen)
        metrics = own if metrics is None else merge_metrics(metrics, own) | {GAP: metrics[GAP]}
    return state, mesh_lib.fetch(metrics)


def greedy(result: dict) -> float:
    """Greedy Pass@1 of an evaluation; NaN on hosts that did not read it."""
    return result["metrics"]["greedy_pass@1"] if result else float("nan")


def counters(parts, state) -> dict:
    """Counts over the whole run, and the rate of the last update."""
    skipped, updates = int(state.skipped), int(state.step)
    return {
        "optimizer/skipped_updates": skipped,
        "learning_rate": float(parts.schedule(max(updates - 1 - skipped, 0))),
        "data/prompts_too_long": parts.too_long + parts.stream.skipped,
    }


def stop_if_broken(config: TrainConfig, step: int, state) -> None:
    """Raise once too many updates in a row were not finite."""
    if int(state.skipped_in_row) >= config.optimizer.max_skipped_in_row:
        raise FloatingPointError(
            f"step {step}: loss or gradient was not finite in {int(state.skipped_in_row)} updates in a "
            "row (optimizer.max_skipped_in_row); no parameter was changed by them"
        )


def show_results(config: TrainConfig, folder: str, parts, after: dict) -> None:
    """The table of before and after (where both evaluated the same), and the learning curve."""
    columns = {"after": after}
    path = os.path.join(folder, "eval", "before.json")
    if os.path.exists(path):
        before = workdir.read_json(path)
        if before.get("of", {}).get("settings") == after["of"]["settings"]:
            columns = {"before": before, "after": after}
    title = f"{config.algorithm.recipe}: {config.eval.source}, {len(parts.held_out)} problems"
    print_table(results_table(title, columns))
    print(f"learning curve: {curve.draw(folder)}")


def open_logs(config: TrainConfig, folder: str, start: int) -> list:
    """Metric writers, cut back to the checkpoint that is being continued."""
    logs = [JsonlLog(os.path.join(folder, "metrics.jsonl"), start)]
    if config.log.tensorboard:
        logs.append(TensorBoardLog(os.path.join(folder, "tensorboard"), start))
    return logs


def outcome_row(step: int, experience) -> dict:
    """Which problems were sampled, how many of their rollouts were right, and which were trained on."""
    sampled = experience.gathered.sampled
    return {
        "step": step,
        "id": [p.id for p in sampled.problems],
        "num_correct": sampled.num_correct.tolist(),
        "kept": experience.gathered.kept,
    }


def write_rollouts(folder, config, experience, step, tokenizer) -> None:
    """Now and then a sample of rollouts with per-token signals, rollouts/step_N.jsonl."""
    every = config.log.rollouts_every
    if not every or (step % every and step != 1):
        return
    path = os.path.join(folder, "rollouts", f"step_{step}.jsonl")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        for record in rollout_records(experience, tokenizer, config.log.rollouts_prompts):
            f.write(json.dumps({"step": step} | record, ensure_ascii=False) + "\n")


def warn(console: Console, config: TrainConfig, step: int, row: dict) -> None:
    """Warnings a researcher should see while the run is young, and skipped updates always."""
    if step <= WARNING_STEPS and row.get("ispo/dense_to_outcome") is not None:
        advice = diagnostics.dense_warning(
            row["ispo/dense_to_outcome"], config.ispo.lambda1, config.ispo.lambda2
        )
        if advice:
            console.warn(f"step {step}: {advice}")
    wanted = config.rollout.num_prompts
    if row["sampling/kept_prompts"] < wanted:
        console.warn(
            f"step {step}: {row['sampling/kept_prompts']} of {wanted} groups after "
            f"{row['sampling/generated_prompts']} prompts (algorithm.max_resample); the rest is blank"
        )
    if not np.isfinite(row["loss"]) or not np.isfinite(row["grad_norm"]):
        console.warn(
            f"step {step}: loss {row['loss']}, gradient {row['grad_norm']}: update skipped"
        )


def is_save_step(config: TrainConfig, step: int) -> bool:
    """Every `checkpoint.every` steps, at evaluations, and at the end."""
    at_evaluation = config.eval_every and step % config.eval_every == 0
    return bool(step % config.checkpoint.every == 0 or at_evaluation or step == config.num_steps)


def main(_):
    mesh_lib.start_distributed()
    train(setup.read_config(TrainConfig), flags.FLAGS.workdir)


if __name__ == "__main__":
    setup.run(main, TrainConfig)
