"""Supervised fine-tuning on reference solutions: the same learner with the likelihood objective.

    python -m jaxrl_reason.sft --config=configs/sft.py:model=tiny,task=arithmetic --workdir=runs/sft

Starting again with the same --workdir continues at the next step.
"""

import dataclasses
import os

import numpy as np
from absl import app, flags

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
    end = model_config.eos_token_ids[-1]
    problems, left_out = solved_problems(config, tokenizer)
    optimizer, schedule = learner.make_optimizer(config.optimizer, config.num_steps)
    template = abstract_params(model_config)
    update = learner.make_update(
        model_config,
        optimizer,
        lambda logp, batch: nll_loss(logp, batch["mask"], batch["weights"]),
        temperature=1.0,
        chunk_tokens=config.learner.chunk_tokens,
        remat=config.model.remat,
        state_sharding=learner.state_shardings(mesh, optimizer, template),
    )
    first = setup.is_first_process()
    checkpoints = checkpoint.Checkpoints(
        os.path.join(folder, "checkpoints"), config.checkpoint.keep
    )
    start = checkpoints.latest or 0
    workdir.claim(folder, "sft", dataclasses.asdict(config), start > 0, write=first)
    stream = ProblemStream(problems, config.batch_size, config.seed)
    if start:
        state, extra = checkpoints.restore(start, learner.abstract_state(mesh, optimizer, template))
        stream.restore(extra["stream"])
    else:
        state = learner.init_state(mesh, optimizer, params)
    del params
    logs = [JsonlLog(os.path.join(folder, "metrics.jsonl"), start)] if first else []
    if first and config.log.tensorboard:
        logs.append(TensorBoardLog(os.path.join(folder, "tensorboard"), start))

    with Console(config.num_steps, start, quiet=not first) as console:
        if config.data.source not in PROCEDURAL:
            console.say(f"{len(problems)} problems; {left_out} left out as too long")
        for step in range(start + 1, config.num_steps + 1):
            timer = PhaseTimer()
            with timer("data"):
                drawn, _ = next(stream)
                batch = make_batch(config, tokenizer, drawn, end)
                batch = learner.split_micro(batch, config.learner.micro_batch_size)
            state, metrics = update(state, mesh_lib.put_batch(mesh, batch, axis=1))
            last = step == config.num_steps
            if step % LOG_EVERY == 0 or step == start + 1 or last:
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
                checkpoints.save(step, state, {"stream": stream.state()}, None)
    checkpoints.close()
    for log in logs:
        log.close()


def solved_problems(config: SftConfig, tokenizer):
    """(source, number left out): problems with a solution whose prompt and solution fit."""
    data = config.data
    source = load_source(
        data.source, split=data.split, seed=config.seed, direct_fraction=data.direct_fraction
    )
    if data.source in PROCEDURAL:
        return source, 0
    without = [p.id for p in source if not p.solution]
    if without:
        raise ValueError(
            f"data.source: {len(without)} problems of {data.source} have no 'solution', e.g. {without[0]}"
        )
    fitting, _ = prompts_lib.filter_long(source, tokenizer, data.template, data.max_prompt_length)
    fitting = [
        p for p in fitting if len(tokenizer.encode(p.solution)) < config.max_completion_length
    ]
    if not fitting:
        raise ValueError("max_completion_length: every solution is longer")
    return fitting, len(source) - len(fitting)


def make_batch(config: SftConfig, tokenizer, problems, end: int) -> dict:
    """Prompts and their solutions with an end token, [B, …] NumPy arrays."""
    data = config.data
    prompts = prompts_lib.make_prompts(problems, tokenizer, data.template, data.max_prompt_length)
    tokens = np.zeros((len(problems), config.max_completion_length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, problem in enumerate(problems):
        ids = [*tokenizer.encode(problem.solution), end]
        if len(ids) > config.max_completion_length:
            raise ValueError(
                f"max_completion_length: {config.max_completion_length}, but the solution of "
                f"{problem.id} has {len(ids)} tokens"
            )
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
    setup.define_flags()
    app.run(main)
