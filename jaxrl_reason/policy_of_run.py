"""The policy of a run at one of its steps, for the tools that look at a finished run."""

import dataclasses
import os
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from jaxrl_reason import checkpoint, learner, setup, workdir
from jaxrl_reason import config as config_lib
from jaxrl_reason.config import SftConfig, TrainConfig
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import ModelConfig, lora
from jaxrl_reason.model import config as model_config_lib
from jaxrl_reason.model.decoder import abstract_params

START = "start"
STEPS = ("latest", "best", START)
MAINS = {"train": TrainConfig, "sft": SftConfig}


def define_flags() -> None:
    """--workdir, --step and --config, which together name a policy."""
    flags.DEFINE_string("workdir", None, "Run folder.", required=True)
    flags.DEFINE_string(
        "step", "latest", "latest, best, a step's number, or start: the model the run started from."
    )
    config_flags.DEFINE_config_file(
        "config", None, "Config in place of the run folder's config.json."
    )


def config_of_flags() -> TrainConfig | SftConfig:
    """The config of --config, or else of the run in --workdir."""
    given = flags.FLAGS.config
    config = given and config_lib.from_config_dict(TrainConfig, given)
    return config or run_config(flags.FLAGS.workdir)


def run_config(folder: str) -> TrainConfig | SftConfig:
    """The config of the run in `folder`; keys that came after it have their defaults."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file, so this is no run folder")
    written = workdir.read_json(path)
    return config_lib.from_run(MAINS[written["main"]], written["config"])


class RunPolicy(NamedTuple):
    """A policy: `params` float32 on the mesh; `extra` is what the checkpoint holds beside it."""

    config: TrainConfig | SftConfig
    model_config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    step: int
    extra: dict


def load_policy(
    folder: str, step: str, mesh, config: TrainConfig | SftConfig | None = None
) -> RunPolicy:
    """The policy of the run in `folder` at a step.

    Of a LoRA run the parameters are base and adapters together (model/lora.py), not merged. `step` is
    `latest`, `best`, a number, or `start`: the model the run started from, number 0, for which `folder`
    needs no checkpoint. `config` stands in for the run's own. Raises FileNotFoundError where there is
    no run or no checkpoint, ValueError naming --step and the steps that are there, or a base that changed.
    """
    config = config or run_config(folder)
    if step == START:
        seed = config.seed if getattr(config, "random_init", False) else None
        return RunPolicy(config, *setup.load_model(config.model, mesh, random_seed=seed), 0, {})
    checkpoints = open_checkpoints(folder)
    number = choose_step(checkpoints, step)
    model = setup.model_folder(config.model.path)
    tokenizer = Tokenizer(model)
    model_config = model_config_lib.read(model, dtype=config.model.dtype, num_tokens=tokenizer.size)
    model_config = setup.with_end_tokens(model_config, config.model, tokenizer)
    rank = config.lora.rank if isinstance(config, TrainConfig) else 0
    base = {}
    if rank:
        _, base, _ = setup.load_model(config.model, mesh)
        model_config = dataclasses.replace(
            model_config, lora_rank=rank, lora_alpha=config.lora.alpha
        )
    trained = lora.abstract_adapters(model_config) if rank else abstract_params(model_config)
    optimizer, _ = learner.make_optimizer(config.optimizer, config.num_steps)
    state, extra = checkpoints.restore(number, learner.abstract_state(mesh, optimizer, trained))
    checkpoints.close()
    if rank and extra["weights"] != checkpoint.fingerprint(model):
        raise ValueError(
            f"model.path: the weights in {config.model.path} changed since this run began, and its "
            "adapters belong to those"
        )
    params = lora.combine(base, state.params)
    return RunPolicy(config, model_config, params, tokenizer, number, extra)


def open_checkpoints(folder: str) -> checkpoint.Checkpoints:
    """The finished checkpoints of a run; none is an error."""
    path = os.path.join(folder, "checkpoints")
    checkpoints = checkpoint.Checkpoints(path) if os.path.isdir(path) else None
    if checkpoints is None or not checkpoints.steps:
        raise FileNotFoundError(f"{folder}: no finished checkpoint")
    return checkpoints


def choose_step(checkpoints: checkpoint.Checkpoints, step: str) -> int:
    """Number of the step named `latest`, `best` or by its number; an error lists what is there."""
    kept = checkpoints.steps
    number = {"latest": checkpoints.latest, "best": checkpoints.best}.get(step, step)
    if number is None or not str(number).isdigit() or int(number) not in kept:
        raise ValueError(f"--step: {step!r} is not there; allowed: {', '.join(STEPS)}, {kept}")
    return int(number)
