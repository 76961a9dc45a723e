"""Evaluation of a policy: greedy Pass@1, avg@k, unbiased pass@k, maj@k, with bootstrap intervals."""

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.pipeline import rollout_key
from jaxrl_reason.data.prompts import answer_format, filter_long, make_prompts
from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.rollout import sample
from jaxrl_reason.rollout.responses import read_responses
from jaxrl_reason.types import Prompts
from jaxrl_reason.verify import Verdict, VerifierPool
from jaxrl_reason.workdir import write_json

BOOTSTRAP_SAMPLES = 2000
MAJORITY_SUBSETS = 64
COMPARING_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to evaluate: prompts, lengths in tokens, and the sampled part (k = 0: greedy only)."""

    template: str
    answer_format: str
    max_prompt_length: int
    max_completion_length: int
    num_generations: int
    temperature: float
    top_k: int
    top_p: float
    batch_size: int
    seed: int

    @classmethod
    def of(cls, prompting, section, max_completion_length: int, seed: int) -> "Decoding":
        """From config: `prompting` has template, answer_format and max_prompt_length."""
        return cls(
            prompting.template,
            answer_format(prompting.template, prompting.answer_format),
            prompting.max_prompt_length,
            max_completion_length,
            section.num_generations,
            section.temperature,
            section.top_k,
            section.top_p,
            section.batch_size,
            seed,
        )


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k)/C(n, k): chance that k of n samples, c of them right, hold a right one.

    Unbiased (Chen et al. 2021), computed as a product. Raises ValueError unless 0 <= c <= n, 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c: {c} correct of n={n} samples")
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is not in 1..n={n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority_class(classes: Sequence[int | None]) -> int | None:
    """The most frequent class, ties to the first seen; None (no answer) does not vote."""
    votes = Counter(c for c in classes if c is not None)
    return max(votes, key=votes.__getitem__) if votes else None  # max keeps the first of equals


def answer_classes(
    answers: Sequence[str | None], same: Callable[[str, str], bool]
) -> list[int | None]:
    """Equivalence class of every answer. Each is compared with every class's first member, that one
    first (`same` is neither symmetric nor transitive); equal strings are never compared."""
    firsts: list[str] = []
    known: dict[str, int] = {}
    for answer in answers:
        if answer is None or answer in known:
            continue
        match = next((i for i, first in enumerate(firsts) if same(first, answer)), None)
        if match is None:
            match = len(firsts)
            firsts.append(answer)
        known[answer] = match
    return [None if answer is None else known[answer] for answer in answers]


def maj_at_k(classes: Sequence[int | None], correct: Sequence[bool], k: int, seed: int) -> float:
    """Accuracy of the majority of exactly k samples; with more samples, mean over seeded subsets."""
    n = len(classes)
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is not in 1..n={n}")
    rng = np.random.default_rng(seed)
    subsets = [range(n)] if k == n else [
        sorted(rng.choice(n, k, replace=False)) for _ in range(MAJORITY_SUBSETS)
    ]  # fmt: skip
    hits = 0
    for subset in subsets:
        winner = majority_class([classes[i] for i in subset])
        # a class is as right as its first member in this subset
        first = next((i for i in subset if winner is not None and classes[i] == winner), None)
        hits += first is not None and bool(correct[first])
    return hits / len(subsets)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling problems."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def evaluate(
    model_config,
    params,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    decoding: Decoding,
    pool: VerifierPool,
    mesh,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict, list[dict]]:
    """(result, generations): metrics, intervals and counts over the problems; one record a problem.

    Every problem is decoded greedily once, and `num_generations` times with the sampling settings.
    Problems whose prompt is too long are left out and counted. `progress(done, total)` in prompts.
    """
    problems, too_long = filter_long(
        problems, tokenizer, decoding.template, decoding.max_prompt_length
    )
    passes = [("greedy", 1, 0.0)]
    if decoding.num_generations:
        passes.append(("sampled", decoding.num_generations, decoding.temperature))
    records = [{"id": p.id, "problem": p.problem, "answer": p.answer} for p in problems]
    total = len(problems) * len(passes)
    for i, (name, generations, temperature) in enumerate(passes):
        for start in range(0, len(problems), decoding.batch_size):
            chunk = problems[start : start + decoding.batch_size]
            rows = _generate(
                model_config,
                params,
                tokenizer,
                chunk,
                decoding,
                generations,
                temperature,
                pool,
                mesh,
            )
            for record, own in zip(records[start:], rows, strict=False):
                record[name] = own
            progress(i * len(problems) + start + len(chunk), total)
    return summarise(records, decoding, pool, {"prompts_too_long": too_long}), records


def _generate(
    model_config, params, tokenizer, problems, decoding, generations, temperature, pool, mesh
) -> list[list[dict]]:
    """Generations with their verdicts for one batch of problems, grouped by problem."""
    size = decoding.batch_size + -decoding.batch_size % mesh_lib.batch_parts(mesh)
    padded = [*problems, *[problems[-1]] * (size - len(problems))]  # one shape, one compilation
    prompts = make_prompts(
        padded,
        tokenizer,
        decoding.template,
        decoding.max_prompt_length,
        keys=[rollout_key(p.id) for p in padded],
    )
    tokens, mask, keys = mesh_lib.put_batch(mesh, (prompts.tokens, prompts.mask, prompts.keys))
    rollouts = sample(
        model_config,
        params,
        Prompts(tokens, mask, keys),
        generations,
        decoding.seed,
        decoding.max_completion_length,
        temperature,
        decoding.top_k if temperature else 0,
        decoding.top_p if temperature else 1.0,
    )
    rollouts = mesh_lib.fetch(rollouts)
    kinds = [p.kind for p in padded for _ in range(generations)]
    responses = read_responses(rollouts, tokenizer, decoding.answer_format, kinds)
    rows = len(problems) * generations
    owners = [p for p in problems for _ in range(generations)]
    judged = pool.verify(
        [(p.kind, p.answer, r.answer) for p, r in zip(owners, responses[:rows], strict=True)]
    )
    verdicts = mesh_lib.first_host_choice(list(Verdict), judged)
    out = [
        {
            "text": r.text,
            "answer": r.answer,
            "verdict": verdict.value,
            "format": r.has_format,
            "thinking": r.thinking,
            "length": int(rollouts.lengths[i]),
            "truncated": bool(rollouts.truncated[i]),
        }
        for i, (r, verdict) in enumerate(zip(responses[:rows], verdicts, strict=True))
    ]
    return [out[i : i + generations] for i in range(0, rows, generations)]


def summarise(records: list[dict], decoding: Decoding, pool: VerifierPool, counts: dict) -> dict:
    """Metrics, 95 % intervals over problems, and counts of a finished evaluation."""
    right = lambda rows: [row["verdict"] == Verdict.correct.value for row in rows]  # noqa: E731
    per_problem: dict[str, list[float]] = {
        "greedy_pass@1": [float(right(r["greedy"])[0]) for r in records]
    }
    k = decoding.num_generations
    if k:
        hits = [right(r["sampled"]) for r in records]
        per_problem[f"avg@{k}"] = [sum(h) / k for h in hits]
        for j in sorted({2**i for i in range(1, k.bit_length()) if 2**i <= k} | {k}):
            per_problem[f"pass@{j}"] = [pass_at_k(k, sum(h), j) for h in hits]
        with ThreadPoolExecutor(COMPARING_THREADS) as threads:  # each keeps one worker busy
            classes = list(threads.map(lambda record: _classes(record, pool), records))
        per_problem[f"maj@{k}"] = [
            maj_at_k(c, h, k, decoding.seed) for c, h in zip(classes, hits, strict=True)
        ]
    for name in ("greedy", "sampled") if k else ("greedy",):
        mean = functools.partial(_mean_of, records, name)
        per_problem[f"{name}/format_rate"] = mean("format")
        per_problem[f"{name}/truncation_rate"] = mean("truncated")
        per_problem[f"{name}/thinking_rate"] = mean("thinking")
        per_problem[f"{name}/mean_length"] = mean("length")
    verdicts = Counter(
        row["verdict"] for r in records for name in ("greedy", "sampled") for row in r.get(name, ())
    )
    return {
        "metrics": {name: float(np.mean(values)) for name, values in per_problem.items()},
        "intervals": {
            name: bootstrap_interval(values, decoding.seed) for name, values in per_problem.items()
        },
        "counts": {"problems": len(records), "generations": sum(verdicts.values())}
        | counts
        | {f"verdict/{v.value}": verdicts[v.value] for v in Verdict},
    }


def _mean_of(records, name, key) -> list[float]:
    return [float(np.mean([row[key] for row in r[name]])) for r in records]


def _classes(record: dict, pool: VerifierPool) -> list[int | None]:
    """Classes of a problem's sampled answers. Right ones are one class; only wrong ones are compared."""
    rows = record["sampled"]
    answers = [
        record["answer"] if row["verdict"] == Verdict.correct.value else row["answer"]
        for row in rows
    ]

    def same(first: str, other: str) -> bool:
        if record["answer"] in (first, other):  # one is right, the other already judged wrong
            return False
        return pool.verify([("math", first, other)])[0] == Verdict.correct

    return answer_classes(answers, same)


def describe(result: dict, source: str, model: str, protocol: str = "custom") -> dict:
    """An evaluation's JSON: what was evaluated on what, then metrics, intervals and counts."""
    return {"source": source, "protocol": protocol, "model": model} | result


def write(path: str, result: dict, generations: list[dict]) -> None:
    """Write every generation to <path>.jsonl beside the JSON, then the JSON itself."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in generations)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path.removesuffix(".json") + ".generations.jsonl", "w", encoding="utf-8") as f:
        f.write(lines)
    write_json(path, result)
