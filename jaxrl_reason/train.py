"""Train a policy with verifiable rewards.

    python -m jaxrl_reason.train --config=configs/ispo.py:model=tiny,task=arithmetic --workdir=runs/ispo

Starting again with the same --workdir continues at the next step. The run folder then holds
config.json, metrics.jsonl, outcomes.jsonl, tensorboard/, checkpoints/, rollouts/, eval/ and
learning_curve.png.
"""

import dataclasses
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxrl_reason import checkpoint, diagnostics, learner, recipes, setup, workdir
from jaxrl_reason import evaluation as evaluation_lib
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.data import prompts as prompts_lib
from jaxrl_reason.data.pipeline import ProblemStream
from jaxrl_reason.data.tasks import PROCEDURAL, evaluation_problems, load_source
from jaxrl_reason.experience import Collector, rollout_records
from jaxrl_reason.masked import merge_metrics
from jaxrl_reason.metrics import JsonlLog, PhaseTimer, TensorBoardLog, finalise
from jaxrl_reason.model.decoder import abstract_params, cast_params
from jaxrl_reason.report import curve
from jaxrl_reason.report.console import Console, print_table, results_table
from jaxrl_reason.verify import VerifierPool

WARNING_STEPS = 3  # how many first steps are checked for dense terms that outweigh the outcome


def train(config: TrainConfig, folder: str) -> None:
    """Run, or continue, a training run in `folder`."""
    recipe = recipes.build(config)
    first = setup.is_first_process()
    resolved, defaults = dataclasses.asdict(config), dataclasses.asdict(TrainConfig())
    workdir.claim(folder, "train", resolved, defaults, write=False)
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    model_config, params, tokenizer = setup.load_model(config.model, mesh)
    check_sizes(config, mesh, model_config)
    problems, too_long, fits = training_problems(config, tokenizer)
    held_out = evaluation_problems(config.eval)
    decoding = evaluation_lib.Decoding.of(
        config.data, config.eval, config.rollout.max_completion_length, config.seed
    )

    settings = json.loads(json.dumps(dataclasses.asdict(decoding) | {"source": config.eval.source}))
    settings |= {"split": config.eval.split, "num_problems": len(held_out)}
    if config.eval.source == config.data.source and config.eval.source not in PROCEDURAL:
        print(f"warning: eval.source is the training set {config.data.source}", file=sys.stderr)

    optimizer, schedule = learner.make_optimizer(
        config.optimizer, config.num_steps * config.algorithm.num_iterations
    )
    shardings = learner.state_shardings(mesh, optimizer, abstract_params(model_config))
    to_rollout_params = learner.rollout_params(model_config, shardings.params)
    update = learner.make_update(
        model_config,
        optimizer,
        recipe.loss,
        temperature=config.rollout.temperature,
        chunk_tokens=config.learner.chunk_tokens,
        remat=config.learner.remat,
        state_sharding=shardings,
        on_policy=config.algorithm.num_iterations == 1,
    )
    # a copy: the masters are donated to the first update
    dtype = model_config.dtype
    ref_params = None
    if "logp_ref" in recipe.needs:
        ref_params = jax.jit(lambda p: cast_params(jax.tree.map(jnp.copy, p), dtype))(params)

    checkpoints = checkpoint.Checkpoints(
        os.path.join(folder, "checkpoints"), config.checkpoint.keep
    )
    start = checkpoints.latest or 0
    workdir.claim(folder, "train", resolved, defaults, write=first)
    stream = ProblemStream(problems, config.rollout.num_prompts, config.seed, fits)
    weights = checkpoint.fingerprint(setup.model_folder(config.model.path))
    num_tokens = 0
    if start > config.num_steps:
        raise ValueError(f"num_steps: {config.num_steps}, but {folder} has {start} steps already")
    if start:
        state, extra = checkpoints.restore(
            start, learner.abstract_state(mesh, optimizer, abstract_params(model_config))
        )
        if extra["weights"] != weights:
            raise ValueError(
                f"model.path: the weights in {config.model.path} changed since this run began"
            )
        stream.restore(extra["stream"])
        num_tokens = extra["num_tokens"]
    else:
        state = learner.init_state(mesh, optimizer, params)
    del params

    with (
        VerifierPool(config.verifier.num_workers, config.verifier.timeout_s) as pool,
        Console(config.num_steps, start, quiet=not first) as console,
    ):
        collect = Collector(config, model_config, recipe, mesh, tokenizer, pool, ref_params)
        logs = open_logs(config, folder, start) if first else []
        outcomes = JsonlLog(os.path.join(folder, "outcomes.jsonl"), start) if first else None

        def evaluate(name: str, step: int) -> dict:
            """Evaluate the policy as it is now; the same evaluation of this step is not repeated."""
            path = os.path.join(folder, "eval", f"{name}.json")
            of = {"step": step, "weights": weights, "settings": settings}
            if mesh_lib.agree(os.path.exists(path) and workdir.read_json(path).get("of") == of):
                return workdir.read_json(path) if first else {}
            result, generations = evaluation_lib.evaluate(
                model_config,
                to_rollout_params(state.params),
                tokenizer,
                held_out,
                decoding,
                pool,
                mesh,
            )
            result = evaluation_lib.describe(result, config.eval.source, config.model.path) | {
                "step": step,
                "of": of,
            }
            if first:
                evaluation_lib.write(path, result, generations)
            return result

        if too_long:
            console.say(f"{too_long} problems left out: their prompts are too long")
        if start:
            console.say(f"continuing {folder} after step {start}")
        else:
            console.say(f"before: {greedy(evaluate('before', 0)):.3f} greedy_pass@1")

        for step in range(start + 1, config.num_steps + 1):
            timer = PhaseTimer()
            drawn, keys = next(stream)
            prompts = prompts_lib.make_prompts(
                drawn, tokenizer, config.data.template, config.data.max_prompt_length, keys
            )
            experience = collect(
                state.params, to_rollout_params(state.params), prompts, step, timer
            )
            with timer("update"):
                batch = learner.split_micro(experience.batch, config.learner.micro_batch_size)
                batch = mesh_lib.put_batch(mesh, batch, axis=1)
                state, update_metrics = update(state, batch)
                for _ in range(config.algorithm.num_iterations - 1):
                    state, more = update(state, batch)
                    update_metrics = merge_metrics(update_metrics, more)
                update_metrics = mesh_lib.fetch(update_metrics)
            num_tokens += int(experience.rollouts.lengths.sum() + prompts.mask.sum())

            row = finalise(experience.metrics | update_metrics)
            skipped, updates = int(state.skipped), int(state.step)
            row |= {"step": step, "num_tokens": num_tokens, "optimizer/skipped_updates": skipped}
            row["learning_rate"] = float(schedule(max(updates - 1 - skipped, 0)))
            row["data/prompts_too_long"] = too_long + stream.skipped
            score = row["accuracy"]
            if config.eval_every:
                score = None
                if step % config.eval_every == 0 and step < config.num_steps:
                    with timer("eval"):
                        score = greedy(evaluate(f"step_{step}", step))
                    row["eval/greedy_pass@1"] = score
            row |= timer.metrics()
            for log in logs:
                log.write(row)
            if first:
                outcomes.write(outcome_row(step, drawn, experience))
                write_rollouts(folder, config, experience, prompts, step, tokenizer)
            console.step(step, row)
            warn(console, config, step, row)
            if int(state.skipped_in_row) >= config.optimizer.max_skipped_in_row:
                raise FloatingPointError(
                    f"step {step}: loss or gradient was not finite in {int(state.skipped_in_row)} "
                    f"updates in a row (optimizer.max_skipped_in_row); no parameter was changed by them"
                )
            if is_save_step(config, step):
                if step == config.num_steps and config.eval_every:
                    score = greedy(evaluate("after", step))
                extra = {"stream": stream.state(), "num_tokens": num_tokens, "weights": weights}
                checkpoints.save(step, state, extra, score)

        after = evaluate("after", config.num_steps)
        checkpoints.close()
        for log in [*logs, *filter(None, [outcomes])]:
            log.close()
    if first:
        results = {"before": os.path.join(folder, "eval", "before.json")}
        results = {k: workdir.read_json(p) for k, p in results.items() if os.path.exists(p)}
        comparable = {
            k: r for k, r in results.items() if r.get("of", {}).get("settings") == settings
        }
        title = f"{config.algorithm.recipe}: {config.eval.source}, {len(held_out)} problems"
        print_table(results_table(title, comparable | {"after": after}))
        print(f"learning curve: {curve.draw(folder)}")


def greedy(result: dict) -> float:
    """Greedy Pass@1 of an evaluation; NaN on hosts that did not read it."""
    return result["metrics"]["greedy_pass@1"] if result else float("nan")


def check_sizes(config: TrainConfig, mesh, model_config) -> None:
    """Refuse batch sizes that do not split over the mesh, and lengths the model was not made for."""
    length = config.data.max_prompt_length + config.rollout.max_completion_length
    if length > model_config.max_position_embeddings:
        raise ValueError(
            f"data.max_prompt_length + rollout.max_completion_length: {length} positions, but "
            f"{config.model.path} has max_position_embeddings {model_config.max_position_embeddings}"
        )
    parts = mesh_lib.batch_parts(mesh)
    for key, size in (
        ("rollout.num_prompts", config.rollout.num_prompts),
        ("learner.micro_batch_size", config.learner.micro_batch_size),
    ):
        if size % parts:
            raise ValueError(
                f"{key}: {size} is no multiple of the {parts} parts of the mesh (data x fsdp)"
            )


def training_problems(config, tokenizer):
    """(source, number left out as too long, predicate). Lists are filtered at once, streams on the way."""
    data = config.data
    source = load_source(data.source, split=data.split, seed=config.seed)
    limit = (tokenizer, data.template, data.max_prompt_length)
    if data.source in PROCEDURAL:
        return source, 0, lambda problem: prompts_lib.fits(problem, *limit)
    kept, too_long = prompts_lib.filter_long(source, *limit)
    return kept, too_long, lambda problem: True


def open_logs(config: TrainConfig, folder: str, start: int) -> list:
    """Metric writers, cut back to the checkpoint that is being continued."""
    logs = [JsonlLog(os.path.join(folder, "metrics.jsonl"), start)]
    if config.log.tensorboard:
        logs.append(TensorBoardLog(os.path.join(folder, "tensorboard"), start))
    return logs


def outcome_row(step: int, problems, experience) -> dict:
    """Which problems were drawn and how many of each one's rollouts were right (ISPO's Fig. 6)."""
    correct = experience.signals.correct.reshape(len(problems), -1).sum(axis=1)
    return {
        "step": step,
        "id": [p.id for p in problems],
        "num_correct": correct.astype(int).tolist(),
    }


def write_rollouts(folder, config, experience, prompts, step, tokenizer) -> None:
    """Now and then a sample of rollouts with per-token signals, rollouts/step_N.jsonl."""
    every = config.log.rollouts_every
    if not every or (step % every and step != 1):
        return
    path = os.path.join(folder, "rollouts", f"step_{step}.jsonl")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        for record in rollout_records(experience, prompts, tokenizer, config.log.rollouts_prompts):
            f.write(json.dumps({"step": step} | record, ensure_ascii=False) + "\n")


def warn(console: Console, config: TrainConfig, step: int, row: dict) -> None:
    """Warnings a researcher should see while the run is young, and skipped updates always."""
    if step <= WARNING_STEPS and row.get("ispo/dense_to_outcome") is not None:
        advice = diagnostics.dense_warning(
            row["ispo/dense_to_outcome"], config.ispo.lambda1, config.ispo.lambda2
        )
        if advice:
            console.warn(f"step {step}: {advice}")
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
    setup.define_flags()
    app.run(main)
