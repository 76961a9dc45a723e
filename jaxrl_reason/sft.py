"""Supervised fine-tuning on reference solutions: the same learner with the likelihood objective.

    python -m jaxrl_reason.sft --config=configs/sft.py:model=tiny,task=arithmetic --workdir=runs/sft

Starting again with the same --workdir continues at the next step.
"""

import dataclasses
import os

import numpy as np
from absl import flags

from jaxrl_reason import checkpoint, learner, setup, workdir
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import SftConfig
from jaxrl_reason.data import prompts as prompts_lib
from jaxrl_reason.data.pipeline import ProblemStream
from jaxrl_reason.data.tasks import PROCEDURAL, load_source
from jaxrl_reason.metrics import JsonlLog, PhaseTimer, TensorBoardLog, finalise
from jaxrl_reason.model.decoder import abstract_params
from jaxrl_reason.objectives.likelihood import nll_loss
from jaxrl_reason.objectives.surrogate import loss_weights
from jaxrl_reason.report.console import Console

LOG_EVERY = 10  # steps between fetches of the metrics


def sft(config: SftConfig, folder: str) -> None:
    """Run, or continue, supervised fine-tuning in `folder`."""
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    if config.learner.micro_batch_size % mesh_lib.batch_parts(mesh):
        raise ValueError(
            f"learner.micro_batch_size: {config.learner.micro_batch_size} is no multiple of the "
            f"{mesh_lib.batch_parts(mesh)} parts of the mesh (data x fsdp)"
        )
    model_config, params, tokenizer = setup.load_model(
        config.model, mesh, random_seed=config.seed if config.random_init else None
    )
    end = end_token(config, model_config, tokenizer)
    problems, left_out, fits = solved_problems(config, tokenizer)
    optimizer, schedule = learner.make_optimizer(config.optimizer, config.num_steps)
    template = abstract_params(model_config)
    update = learner.make_update(
        model_config,
        optimizer,
        lambda logp, entropy, batch: nll_loss(logp, batch["mask"], batch["weights"]),
        temperature=1.0,
        chunk_tokens=config.learner.chunk_tokens,
        remat=config.learner.remat,
        state_sharding=learner.state_shardings(mesh, optimizer, template),
    )
    first = setup.is_first_process()
    checkpoints = checkpoint.Checkpoints(
        os.path.join(folder, "checkpoints"), config.checkpoint.keep
    )
    start = checkpoints.latest or 0
    defaults = dataclasses.asdict(SftConfig())
    workdir.claim(folder, "sft", dataclasses.asdict(config), defaults, write=first)
    if start > config.num_steps:
        raise ValueError(f"num_steps: {config.num_steps}, but {folder} has {start} steps already")
    stream = ProblemStream(problems, config.batch_size, config.seed, fits)
    weights = checkpoint.fingerprint(setup.model_folder(config.model.path))
    if start:
        state, extra = checkpoints.restore(start, learner.abstract_state(mesh, optimizer, template))
        if extra["weights"] != weights:
            raise ValueError(
                f"model.path: the weights in {config.model.path} changed since this run began"
            )
        stream.restore(extra["stream"])
    else:
        state = learner.init_state(mesh, optimizer, params)
    del params
    logs = [JsonlLog(os.path.join(folder, "metrics.jsonl"), start)] if first else []
    if first and config.log.tensorboard:
        logs.append(TensorBoardLog(os.path.join(folder, "tensorboard"), start))

    with Console(config.num_steps, start, quiet=not first) as console:
        if left_out:
            console.say(f"{left_out} problems left out as too long, {len(problems)} remain")
        for step in range(start + 1, config.num_steps + 1):
            timer = PhaseTimer()
            with timer("data"):
                drawn, _ = next(stream)
                batch = make_batch(config, tokenizer, drawn, end)
                batch = learner.split_micro(batch, config.learner.micro_batch_size)
            state, metrics = update(state, mesh_lib.put_batch(mesh, batch, axis=1))
            last = step == config.num_steps
            if step % LOG_EVERY == 0 or step == 1 or last:
                row = finalise(mesh_lib.fetch(metrics))
                skipped = int(state.skipped)
                row |= {"step": step, "optimizer/skipped_updates": skipped} | timer.metrics()
                row["learning_rate"] = float(schedule(max(step - 1 - skipped, 0)))
                for log in logs:
                    log.write(row)
                console.step(step, row)
                if int(state.skipped_in_row) >= config.optimizer.max_skipped_in_row:
                    raise FloatingPointError(
                        f"step {step}: {int(state.skipped_in_row)} non-finite updates in a row "
                        "(optimizer.max_skipped_in_row); no parameter was changed by them"
                    )
            if step % config.checkpoint.every == 0 or last:
                checkpoints.save(step, state, {"stream": stream.state(), "weights": weights}, None)
    checkpoints.close()
    for log in logs:
        log.close()


def end_token(config: SftConfig, model_config, tokenizer) -> int:
    """What ends a solution: the extra end token, else the tokenizer's eos_token, else the model's."""
    named = [*filter(None, config.model.extra_eos_tokens.split(","))]
    named += filter(None, [tokenizer.named_tokens.get("eos_token")])
    ids = [tokenizer.special[name] for name in named if name in tokenizer.special]
    ids += model_config.eos_token_ids
    if not ids:
        raise ValueError(f"{config.model.path}: neither model nor tokenizer names an end token")
    return ids[0]


def solved_problems(config: SftConfig, tokenizer):
    """(source, number left out, predicate): problems whose prompt and solution fit."""
    data = config.data
    source = load_source(
        data.source, split=data.split, seed=config.seed, direct_fraction=data.direct_fraction
    )

    def fits(problem) -> bool:
        solution = len(tokenizer.encode(problem.solution)) + 1  # and the end token
        prompt = (problem, tokenizer, data.template, data.max_prompt_length)
        return solution <= config.max_completion_length and prompts_lib.fits(*prompt)

    if data.source in PROCEDURAL:
        return source, 0, fits
    without = [p.id for p in source if not p.solution]
    if without:
        raise ValueError(
            f"data.source: {len(without)} problems of {data.source} have no 'solution', "
            f"e.g. {without[0]}"
        )
    fitting = [problem for problem in source if fits(problem)]
    if not fitting:
        raise ValueError(
            "data.max_prompt_length, max_completion_length: no problem with its solution fits"
        )
    return fitting, len(source) - len(fitting), lambda problem: True


def make_batch(config: SftConfig, tokenizer, problems, end: int) -> dict:
    """Prompts and their solutions with an end token, [B, …] NumPy arrays."""
    data = config.data
    prompts = prompts_lib.make_prompts(problems, tokenizer, data.template, data.max_prompt_length)
    tokens = np.zeros((len(problems), config.max_completion_length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, problem in enumerate(problems):
        ids = [*tokenizer.encode(problem.solution), end]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    weights = np.asarray(loss_weights(mask, "token_mean"))
    return {
        "prompt_tokens": prompts.tokens,
        "prompt_mask": prompts.mask,
        "tokens": tokens,
        "mask": mask,
        "weights": weights,
    }


def main(_):
    mesh_lib.start_distributed()
    sft(setup.read_config(SftConfig), flags.FLAGS.workdir)


if __name__ == "__main__":
    setup.run(main, SftConfig)
