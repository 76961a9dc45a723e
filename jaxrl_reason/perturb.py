"""What perturbed tokens do to the answer: ERPO's study (Fig. 1b), of a run's policy.

    python -m jaxrl_reason.perturb --workdir=runs/ispo [--step=latest|best|start|N] \\
        [--num_problems=50] [--fraction=0.05] [--max_positions=4] [--thinking_only]

`--config=configs/ispo.py:model=FOLDER,task=… --step=start` looks at a Hugging Face folder.

Takes held-out problems of the run in order until `num_problems` of them are answered correctly (greedy),
and of each response the ⌈fraction·n⌉ tokens of highest and those of lowest entropy (end token excluded,
π at the run's sampling temperature). A perturbed token is replaced by a random other one (uniform over
the tokenizer's ids that are not special), the response is cut there and decoding goes on from prompt and
prefix, as token ids, with the tokens that are left of the run's budget.

The paper perturbs "the top 5 % of high-entropy tokens … for each sequence" and speaks of "controlled
truncation and random replacement". After the first replacement and a new continuation, the later
positions of the old response exist no more. Our reading: every chosen position is perturbed alone, in a
copy of its own (at most `max_positions` per kind, the most extreme ones), and a problem's accuracy is the
mean over its copies. The control cuts at the same positions of both kinds and keeps the token: greedily it
must give the response again.

Low-entropy tokens may stand in the answer itself, where a replacement changes it outright (`in_answer`
counts them); `--thinking_only` chooses among the tokens before the answer. Intervals are bootstrapped over
problems, differences paired by problem. Writes <workdir>/perturb/step_N.json, .png, and every continuation
to .jsonl.
"""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from jaxrl_reason import evaluation, policy_of_run, setup
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.data.pipeline import rollout_key
from jaxrl_reason.data.prompts import answer_format, filter_long, left_pad, render
from jaxrl_reason.data.tasks import Problem, evaluation_problems
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.model import ModelConfig
from jaxrl_reason.model.decoder import cast_params
from jaxrl_reason.report import bars
from jaxrl_reason.report.console import print_table, results_table
from jaxrl_reason.rollout import sample
from jaxrl_reason.rollout.responses import Response, read_responses
from jaxrl_reason.signals import perturbation
from jaxrl_reason.signals.score import score
from jaxrl_reason.types import Prompts, Rollouts
from jaxrl_reason.validate import check_seed, require
from jaxrl_reason.verify import Verdict, VerifierPool
from jaxrl_reason.workdir import write_json

CONTROL = "control"
ARMS = (*perturbation.KINDS, CONTROL)


@dataclasses.dataclass(frozen=True)
class Study:
    """The flags, checked."""

    num_problems: int = 50
    fraction: float = 0.05  # of a response's tokens, per kind
    max_positions: int = 4  # copies per problem and kind
    max_problems: int = 500  # how many may be tried
    temperature: float = 0.0  # of the continuations; 0: greedy
    seed: int = 0
    thinking_only: bool = False

    def __post_init__(self):
        for name in ("num_problems", "max_positions", "max_problems"):
            require(f"--{name}", getattr(self, name), getattr(self, name) >= 1, ">= 1")
        require("--fraction", self.fraction, 0 < self.fraction <= 0.5, "in (0, 0.5]")
        finite = 0 <= self.temperature < float("inf")
        require("--temperature", self.temperature, finite, "a finite number >= 0; 0 is greedy")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What decoding and judging need."""

    config: TrainConfig
    model_config: ModelConfig
    params: Any  # in the compute dtype
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    pool: VerifierPool


@dataclasses.dataclass(frozen=True)
class Solved:
    """A problem answered correctly: ids of prompt and response, and entropies of what may be perturbed."""

    problem: Problem
    prompt: list[int]
    response: list[int]
    entropy: np.ndarray
    answer_start: int  # of the answer's opening


@dataclasses.dataclass(frozen=True)
class Copy:
    """One continuation to make: the response up to `position`, `token` there."""

    source: Solved
    arm: str
    rank: int
    position: int
    token: int


def perturb(config: TrainConfig, folder: str, step: str, study: Study) -> tuple[int, dict, list]:
    """(number of the step, result, one record per continuation)."""
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    policy = policy_of_run.load_policy(folder, step, mesh, config)
    _, model_config, params, tokenizer, number, _ = policy
    params = cast_params(params, model_config.dtype)
    with VerifierPool(config.verifier.num_workers, config.verifier.timeout_s) as pool:
        policy = Policy(config, model_config, params, tokenizer, mesh, pool)
        solved, counts = find_solved(policy, study)
        if not solved:
            raise ValueError(
                f"--max_problems: none of {counts['tried']} problems of {config.eval.source} is "
                "answered correctly by tokens that may be perturbed"
            )
        allowed = ordinary_tokens(tokenizer, model_config.eos_token_ids)
        records = continuations(policy, study, make_copies(study, solved, allowed))
    result = summarise(records, study.seed)
    result["counts"] = counts | result["counts"]
    result = evaluation.describe(result, config.eval.source, config.model.path, "perturb")
    return number, result | {"step": number, "study": dataclasses.asdict(study)}, records


def find_solved(policy: Policy, study: Study) -> tuple[list[Solved], dict]:
    """The first problems that are answered correctly, in order, and how many were tried."""
    config = policy.config
    limit = (policy.tokenizer, config.data.template, config.data.max_prompt_length)
    section = dataclasses.replace(config.eval, num_problems=study.max_problems)
    problems, too_long = filter_long(evaluation_problems(section), *limit)
    entropies = jax.jit(
        functools.partial(
            score,
            policy.model_config,
            temperature=config.rollout.temperature,
            chunk_tokens=config.learner.chunk_tokens,
        )
    )
    solved, tried = [], 0
    while len(solved) < study.num_problems and tried < len(problems):
        chunk = problems[tried : tried + config.eval.batch_size]
        rows = [policy.tokenizer.encode(render(limit[1], p.problem, limit[0])) for p in chunk]
        prompts, rollouts = decode(policy, rows, limit[2], [p.id for p in chunk], 0.0, study.seed)
        responses, verdicts = judge(policy, chunk, rollouts)
        own = (prompts.tokens, prompts.mask, rollouts.tokens, rollouts.mask)
        _, entropy = mesh_lib.fetch(entropies(policy.params, *mesh_lib.put_batch(policy.mesh, own)))
        for i, problem in enumerate(chunk):
            tried += 1
            if verdicts[i] != Verdict.correct:
                continue
            ids = rollouts.tokens[i, : rollouts.lengths[i]].tolist()
            n = len(ids) - (ids[-1] in policy.model_config.eos_token_ids)
            span = responses[i].span
            answer_start = n if span is None else span.opening_start
            n = min(n, answer_start) if study.thinking_only else n
            if n:
                solved.append(Solved(problem, rows[i], ids, entropy[i, :n], answer_start))
            if len(solved) == study.num_problems:
                break
    return solved, {"problems": len(solved), "tried": tried, "prompts_too_long": too_long}


def ordinary_tokens(tokenizer: Tokenizer, eos_token_ids) -> list[int]:
    """Ids the tokenizer knows that are neither special nor end tokens."""
    known = [i for i, piece in enumerate(tokenizer.token_bytes(range(tokenizer.size))) if piece]
    return sorted(set(known) - set(tokenizer.special.values()) - set(eos_token_ids))


def make_copies(study: Study, solved: list[Solved], allowed: list[int]) -> list[Copy]:
    """Of every response: one copy per chosen position with another token, and one that keeps it."""
    copies = []
    for s in solved:
        cuts = {}
        for kind in perturbation.KINDS:
            chosen = perturbation.extreme_positions(
                s.entropy, study.fraction, kind, study.max_positions
            )
            for rank, t in enumerate(chosen):
                token = perturbation.replacement_token(
                    s.response[t], allowed, study.seed, s.problem.id, t
                )
                copies.append(Copy(s, kind, rank, t, token))
                cuts[t] = Copy(s, CONTROL, rank, t, s.response[t])
        copies.extend(cuts.values())
    return copies


def continuations(policy: Policy, study: Study, copies: list[Copy]) -> list[dict]:
    """Decode every copy to its end and judge it; one record each."""
    config, records = policy.config, []
    budget = config.rollout.max_completion_length
    length = config.data.max_prompt_length + budget  # one shape, one compilation
    for start in range(0, len(copies), config.eval.batch_size):
        chunk = copies[start : start + config.eval.batch_size]
        prefixes = [[*c.source.response[: c.position], c.token] for c in chunk]
        rows = [c.source.prompt + prefix for c, prefix in zip(chunk, prefixes, strict=True)]
        keys = [f"{c.source.problem.id}/{c.arm}/{c.position}" for c in chunk]
        _, more = decode(policy, rows, length, keys, study.temperature, study.seed)
        whole = join(prefixes, more, budget)
        responses, verdicts = judge(policy, [c.source.problem for c in chunk], whole)
        for i, copy in enumerate(chunk):
            ids = whole.tokens[i, : whole.lengths[i]].tolist()
            records.append(
                {
                    "id": copy.source.problem.id,
                    "arm": copy.arm,
                    "rank": copy.rank,
                    "position": copy.position,
                    "entropy": float(copy.source.entropy[copy.position]),
                    "in_answer": copy.position >= copy.source.answer_start,
                    "original": piece(policy, copy.source.response[copy.position]),
                    "token": piece(policy, copy.token),
                    "verdict": verdicts[i].value,
                    "answer": responses[i].answer,
                    "same_response": ids == copy.source.response,
                    "truncated": bool(whole.truncated[i]),
                    "text": responses[i].text,
                    "token_ids": ids,
                }
            )
    return records


def decode(policy: Policy, rows, length: int, names, temperature: float, seed: int):
    """(Prompts, host Rollouts) of one completion per row of ids, in a batch of `eval.batch_size`.

    `names` seed the rows. Rows beyond those given repeat the last one.
    """
    size = policy.config.eval.batch_size
    size += -size % mesh_lib.batch_parts(policy.mesh)
    fill = size - len(rows)
    tokens, mask = left_pad([*rows, *[rows[-1]] * fill], length, policy.tokenizer.pad_token_id)
    keys = np.asarray([rollout_key(name) for name in [*names, *[names[-1]] * fill]], np.uint32)
    rollouts = sample(
        policy.model_config,
        policy.params,
        Prompts(*mesh_lib.put_batch(policy.mesh, (tokens, mask, keys))),
        seed=seed,
        max_completion_length=policy.config.rollout.max_completion_length,
        temperature=temperature,
    )
    return Prompts(tokens, mask, keys), mesh_lib.fetch(rollouts)


def join(prefixes: list[list[int]], more: Rollouts, budget: int) -> Rollouts:
    """Prefixes and their continuations as responses of at most `budget` tokens; rows as many as prefixes.

    The continuations may be longer than what a prefix leaves of the budget: rows do not depend on one
    another, so cutting them is the same as having stopped there.
    """
    tokens = np.zeros((len(prefixes), budget), np.int32)
    lengths, truncated = np.zeros(len(prefixes), np.int32), np.zeros(len(prefixes), bool)
    for i, prefix in enumerate(prefixes):
        left = budget - len(prefix)
        row = [*prefix, *more.tokens[i, : min(more.lengths[i], left)]]
        tokens[i, : len(row)] = row
        lengths[i] = len(row)
        truncated[i] = more.truncated[i] or more.lengths[i] > left
    mask = np.arange(budget)[None] < lengths[:, None]
    return Rollouts(tokens, mask, np.zeros(tokens.shape, np.float32), lengths, truncated)


def judge(policy: Policy, problems: list[Problem], rollouts: Rollouts):
    """(responses, verdicts) of the first rows, one per problem."""
    rows = jax.tree.map(lambda x: x[: len(problems)], rollouts)
    data = policy.config.data
    form = answer_format(data.template, data.answer_format)
    responses: list[Response] = read_responses(
        rows, policy.tokenizer, form, [p.kind for p in problems]
    )
    judged = policy.pool.verify(
        [(p.kind, p.answer, r.answer) for p, r in zip(problems, responses, strict=True)]
    )
    return responses, mesh_lib.first_host_choice(list(Verdict), judged)


def piece(policy: Policy, token: int) -> str:
    """Text of one token."""
    return policy.tokenizer.decode([token], skip_special=False)


def summarise(records: list[dict], seed: int) -> dict:
    """Accuracies of the arms and their paired differences, with 95 % intervals over problems, and counts."""
    hits: dict[str, dict[str, list[bool]]] = {arm: {} for arm in ARMS}
    for r in records:
        hits[r["arm"]].setdefault(r["id"], []).append(r["verdict"] == Verdict.correct.value)
    ids = list(dict.fromkeys(r["id"] for r in records))
    mean = {arm: np.array([np.mean(hits[arm][i]) for i in ids]) for arm in ARMS}
    per_problem = {f"accuracy/{arm}": mean[arm] for arm in ARMS}
    for a, b in ((ARMS[0], ARMS[1]), (ARMS[0], CONTROL), (ARMS[1], CONTROL)):
        per_problem[f"difference/{a} - {b}"] = mean[a] - mean[b]
    counts = {}
    for arm in ARMS:
        own = [r for r in records if r["arm"] == arm]
        counts[f"continuations/{arm}"] = len(own)
        counts[f"in_answer/{arm}"] = sum(r["in_answer"] for r in own)
        counts[f"same_response/{arm}"] = sum(r["same_response"] for r in own)
    return {
        "metrics": {name: float(np.mean(values)) for name, values in per_problem.items()},
        "intervals": {
            name: evaluation.bootstrap_interval(values, seed)
            for name, values in per_problem.items()
        },
        "counts": counts,
    }


def show(path: str, title: str, result: dict, records: list[dict]) -> None:
    """Write the JSON, the JSONL and the PNG, and print the table."""
    write_json(path + ".json", result)
    with open(path + ".jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    of_arms = lambda values: {arm: values[f"accuracy/{arm}"] for arm in ARMS}  # noqa: E731
    bars.draw(path + ".png", of_arms(result["metrics"]), of_arms(result["intervals"]), title)
    print_table(results_table(title, {"95 % interval over problems": result}))
    counts = result["counts"]
    print(f"{counts['problems']} problems answered correctly of {counts['tried']} tried")
    for arm in ARMS:
        total, inside = counts[f"continuations/{arm}"], counts[f"in_answer/{arm}"]
        same = counts[f"same_response/{arm}"]
        print(f"{arm}: {total} continuations, {inside} cut in the answer, {same} as the original")
    print(f"wrote {path}.json, .jsonl and .png")


def main(_):
    logging.set_verbosity(logging.WARNING)
    args = flags.FLAGS
    try:
        study = Study(**{field.name: args[field.name].value for field in dataclasses.fields(Study)})
        config = policy_of_run.config_of_flags()
        trained = isinstance(config, TrainConfig)
        require("--workdir", type(config).__name__, trained, "a run of train, or give --config")
        number, result, records = perturb(config, args.workdir, args.step, study)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if setup.is_first_process():
        path = os.path.join(args.out or os.path.join(args.workdir, "perturb"), f"step_{number}")
        title = (
            f"{config.algorithm.recipe}, step {number}: {study.fraction:.0%} of tokens perturbed"
        )
        show(path, title, result, records)


def define_flags() -> None:
    """Those of `Study` and --out, beside those that name the policy."""
    policy_of_run.define_flags()
    default = Study()
    flags.DEFINE_integer("num_problems", default.num_problems, "Problems answered correctly.")
    flags.DEFINE_float("fraction", default.fraction, "Share of a response's tokens, per kind.")
    flags.DEFINE_integer("max_positions", default.max_positions, "Copies per problem and kind.")
    flags.DEFINE_integer("max_problems", default.max_problems, "Problems that may be tried.")
    flags.DEFINE_float("temperature", default.temperature, "Of the continuations; 0: greedy.")
    flags.DEFINE_integer("seed", default.seed, "Of replacements, sampling and intervals.")
    flags.DEFINE_bool("thinking_only", default.thinking_only, "Only tokens before the answer.")
    flags.DEFINE_string("out", None, "Folder to write to; default <workdir>/perturb.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
