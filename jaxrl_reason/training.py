"""What the training loop stands on: the parts of a run, its state, and its held-out evaluation."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_reason import checkpoint, learner, recipes, setup, workdir
from jaxrl_reason import evaluation as evaluation_lib
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.data import prompts as prompts_lib
from jaxrl_reason.data.pipeline import ProblemStream
from jaxrl_reason.data.tasks import PROCEDURAL, Problem, evaluation_problems, load_source
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import ModelConfig, lora
from jaxrl_reason.model.decoder import abstract_params, cast_params
from jaxrl_reason.types import TrainState
from jaxrl_reason.verify import VerifierPool, write_answer


@dataclasses.dataclass(frozen=True)
class Parts:
    """Everything of a run that does not change with its steps, but for the stream of problems."""

    mesh: jax.sharding.Mesh
    model_config: ModelConfig
    tokenizer: Tokenizer
    recipe: recipes.Recipe
    start_params: Any  # what is trained, float32, on the mesh; the first update takes them over
    frozen: Any  # LoRA's base in the compute dtype; {} without LoRA
    ref_params: Any  # π_0 in the compute dtype, None when the recipe does not need it
    weights: str  # fingerprint of the model folder
    optimizer: optax.GradientTransformation
    schedule: Callable
    update: Callable
    to_rollout_params: Callable
    stream: ProblemStream
    too_long: int  # problems left out of a list; those of a stream are counted by it
    held_out: list[Problem]

    def whole(self, trained):
        """All parameters of the policy, from the trained ones."""
        return lora.combine(self.frozen, trained)


def build(config: TrainConfig) -> Parts:
    """Load and check everything a run needs, and build its update."""
    recipe = recipes.build(config)
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    model_config, params, tokenizer = setup.load_model(
        config.model, mesh, masters=not config.lora.rank
    )
    check_length(config, model_config)
    check_sizes(config, mesh)
    problems, too_long, fits = training_problems(config, tokenizer)
    check_problems(config, recipe, problems, tokenizer, model_config)
    held_out = evaluation_problems(config.eval)
    if config.eval.source == config.data.source and config.eval.source not in PROCEDURAL:
        print(f"warning: eval.source is the training set {config.data.source}", file=sys.stderr)
    model_config, trained, frozen = add_adapters(config, mesh, model_config, params)
    optimizer, schedule = learner.make_optimizer(
        config.optimizer, config.num_steps, config.algorithm.updates_per_step
    )
    if config.optimizer.warmup_steps >= config.num_steps:
        print(
            f"warning: optimizer.warmup_steps: {config.optimizer.warmup_steps} of {config.num_steps} "
            "steps, the peak rate is never reached",
            file=sys.stderr,
        )
    shardings = learner.state_shardings(mesh, optimizer, trained_template(config, model_config))
    update = learner.make_update(
        model_config,
        optimizer,
        recipe.loss,
        temperature=config.rollout.temperature,
        chunk_tokens=config.learner.chunk_tokens,
        remat=config.learner.remat,
        state_sharding=shardings,
        on_policy=config.algorithm.updates_per_step == 1,
    )
    ref_params = None
    if "logp_ref" in recipe.needs:
        # adapters off is π_0 already; otherwise a copy: the masters are donated to the first update
        copy = lambda p: cast_params(jax.tree.map(jnp.copy, p), model_config.dtype)  # noqa: E731
        ref_params = frozen or jax.jit(copy)(params)
    return Parts(
        mesh=mesh,
        model_config=model_config,
        tokenizer=tokenizer,
        recipe=recipe,
        start_params=trained,
        frozen=frozen,
        ref_params=ref_params,
        weights=checkpoint.fingerprint(setup.model_folder(config.model.path)),
        optimizer=optimizer,
        schedule=schedule,
        update=update,
        to_rollout_params=learner.rollout_params(
            model_config, mesh_lib.param_shardings(mesh, abstract_params(model_config))
        ),
        stream=ProblemStream(problems, config.rollout.num_prompts, config.seed, fits),
        too_long=too_long,
        held_out=held_out,
    )


def restore(
    config: TrainConfig, folder: str, parts: Parts
) -> tuple[TrainState, int, int, checkpoint.Checkpoints]:
    """(state, finished steps, tokens so far, checkpoints) of the run in `folder`, fresh or continued.

    Also moves the stream of problems to where the run stood.
    """
    checkpoints = checkpoint.Checkpoints(
        os.path.join(folder, "checkpoints"), config.checkpoint.keep
    )
    start = checkpoints.latest or 0
    if start > config.num_steps:
        raise ValueError(f"num_steps: {config.num_steps}, but {folder} has {start} steps already")
    if not start:
        state = learner.init_state(parts.mesh, parts.optimizer, parts.start_params)
        return state, 0, 0, checkpoints
    jax.tree.map(lambda x: x.delete(), parts.start_params)  # the restored ones take their place
    template = trained_template(config, parts.model_config)
    state, extra = checkpoints.restore(
        start, learner.abstract_state(parts.mesh, parts.optimizer, template)
    )
    if extra["weights"] != parts.weights:
        raise ValueError(
            f"model.path: the weights in {config.model.path} changed since this run began"
        )
    parts.stream.restore(extra["stream"])
    return state, start, extra["num_tokens"], checkpoints


class HeldOut:
    """Evaluates the policy during a run. What eval/ already holds of a step is not computed again."""

    def __init__(self, config: TrainConfig, parts: Parts, pool: VerifierPool, folder: str):
        self._config, self._parts, self._pool, self._folder = config, parts, pool, folder
        self._decoding = evaluation_lib.Decoding.of(
            config.data, config.eval, config.rollout.max_completion_length, config.seed
        )
        settings = dataclasses.asdict(self._decoding) | {
            "source": config.eval.source,
            "split": config.eval.split,
            "num_problems": len(parts.held_out),
        }
        self._settings = json.loads(json.dumps(settings))

    def __call__(self, name: str, step: int, state: TrainState) -> dict:
        """The result written to eval/<name>.json; empty on other hosts where it was there already."""
        parts, first = self._parts, setup.is_first_process()
        path = os.path.join(self._folder, "eval", f"{name}.json")
        of = {"step": step, "weights": parts.weights, "settings": self._settings}
        if mesh_lib.agree(os.path.exists(path) and workdir.read_json(path).get("of") == of):
            return workdir.read_json(path) if first else {}
        result, generations = evaluation_lib.evaluate(
            parts.model_config,
            parts.to_rollout_params(parts.whole(state.params)),
            parts.tokenizer,
            parts.held_out,
            self._decoding,
            self._pool,
            parts.mesh,
        )
        source, model = self._config.eval.source, self._config.model.path
        result = evaluation_lib.describe(result, source, model) | {"step": step, "of": of}
        if first:
            evaluation_lib.write(path, result, generations)
        return result


def add_adapters(config: TrainConfig, mesh, model_config, params):
    """(model config, trained parameters, frozen parameters): everything is trained, or with LoRA the
    new adapters alone, beside the base in the compute dtype."""
    if not config.lora.rank:
        return model_config, params, {}
    model_config = dataclasses.replace(
        model_config, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha
    )
    make = jax.jit(
        lambda: lora.init_adapters(model_config, config.seed),
        out_shardings=mesh_lib.param_shardings(mesh, lora.abstract_adapters(model_config)),
    )
    return model_config, make(), params


def trained_template(config: TrainConfig, model_config):
    """Shapes of the trained parameters."""
    make = lora.abstract_adapters if config.lora.rank else abstract_params
    return make(model_config)


def check_problems(config: TrainConfig, recipe: recipes.Recipe, problems, tokenizer, model_config):
    """Refuse problems that lack what the recipe reads: hints, or a reference answer that fits."""
    if recipe.sampling == "hints" and isinstance(problems, list):
        if not any(problem.hints for problem in problems):
            raise ValueError(f"data.source: no problem of {config.data.source} has 'hints'")
    elif recipe.sampling == "hints" and config.data.source != "arithmetic":
        raise ValueError(f"data.source: problems of {config.data.source!r} have no hints")
    if "gold_logp" in recipe.needs:
        listed = problems if isinstance(problems, list) else [problems[0]]
        other = next((p for p in listed if p.kind != "math"), None)
        if other:
            raise ValueError(
                f"data.source: recipe {config.algorithm.recipe!r} needs a reference answer, and "
                f"{other.id!r} of kind {other.kind!r} has none"
            )
        form = prompts_lib.answer_format(config.data.template, config.data.answer_format)
        longest = max(len(tokenizer.encode(write_answer(p.answer, form))) for p in listed)
        check_length(config, model_config, longest)


def check_length(config: TrainConfig, model_config, answer: int = 0) -> None:
    """Refuse lengths the model was not made for; `answer` tokens are scored after a whole response."""
    length = config.data.max_prompt_length + config.rollout.max_completion_length + answer
    if length > model_config.max_position_embeddings:
        after = f", {answer} of them a reference answer" if answer else ""
        raise ValueError(
            f"data.max_prompt_length + rollout.max_completion_length: {length} positions{after}, but "
            f"{config.model.path} has max_position_embeddings {model_config.max_position_embeddings}"
        )


def check_sizes(config: TrainConfig, mesh) -> None:
    """Refuse batch sizes that do not split over the mesh."""
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
