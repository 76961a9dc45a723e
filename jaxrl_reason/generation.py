"""Rollouts that are read and judged, and the ways to choose which of them make up a batch.

`Generator` samples one batch of prompts. `gather` draws, samples and selects until there is a batch for
the learner, and counts what that cost. Host arrays throughout.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason import selection
from jaxrl_reason.data.prompts import fits, make_prompts
from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.rollout import sample
from jaxrl_reason.rollout.responses import Response, read_responses
from jaxrl_reason.types import Prompts, Rollouts
from jaxrl_reason.verify import Verdict, VerifierPool


@dataclasses.dataclass
class Rows:
    """B = P·G rollouts with the prompts they were sampled from; the G of a prompt adjacent.

    `pending` are verdicts still being made; `judge()` waits for them. `hint` is the level of the hint a
    rollout's prompt showed, -1 for none. A blank row has no tokens and stands for nothing.
    """

    problems: list[Problem]  # one a prompt
    prompt_tokens: np.ndarray
    prompt_mask: np.ndarray
    rollouts: Rollouts
    responses: list[Response]
    pending: Callable[[], list[Verdict]] | None
    verdicts: list[Verdict]
    hint: np.ndarray

    def judge(self) -> "Rows":
        """These rows, with their verdicts there."""
        if self.pending is not None:
            self.verdicts, self.pending = self.pending(), None
        return self

    @property
    def correct(self) -> np.ndarray:
        """float32 [B]: 1 where the verifier says correct."""
        return np.array([v == Verdict.correct for v in self.judge().verdicts], np.float32)

    @property
    def num_generations(self) -> int:
        """G."""
        return len(self.responses) // len(self.problems)

    @property
    def num_correct(self) -> np.ndarray:
        """int [P]: right rollouts of each prompt."""
        return self.correct.reshape(len(self.problems), -1).sum(axis=1).astype(int)

    def take(self, prompts: Sequence[int]) -> "Rows":
        """The rows of some prompts."""
        size = self.num_generations
        rows = (np.asarray(prompts, int)[:, None] * size + np.arange(size)).reshape(-1)
        return self._rows([self.problems[p] for p in prompts], rows)

    def _rows(self, problems: list[Problem], rows: np.ndarray) -> "Rows":
        self.judge()
        pick = lambda x: x[rows]  # noqa: E731
        rollouts = Rollouts(*(pick(getattr(self.rollouts, f.name)) for f in ROLLOUT_FIELDS))
        return Rows(
            problems,
            pick(self.prompt_tokens),
            pick(self.prompt_mask),
            rollouts,
            [self.responses[i] for i in rows],
            None,
            [self.verdicts[i] for i in rows],
            pick(self.hint),
        )


ROLLOUT_FIELDS = dataclasses.fields(Rollouts)
BLANK = Response("", None, None, False, False)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows of several batches, one after the other."""
    join = lambda name: np.concatenate([getattr(p, name) for p in parts])  # noqa: E731
    chain = lambda name: [x for p in parts for x in getattr(p.judge(), name)]  # noqa: E731
    return Rows(
        chain("problems"),
        join("prompt_tokens"),
        join("prompt_mask"),
        Rollouts(
            *(np.concatenate([getattr(p.rollouts, f.name) for p in parts]) for f in ROLLOUT_FIELDS)
        ),
        chain("responses"),
        None,
        chain("verdicts"),
        join("hint"),
    )


def blank(rows: Rows) -> Rows:
    """As many rows without any token: they fill up a batch and count nowhere."""
    empty = Rollouts(*(np.zeros_like(getattr(rows.rollouts, f.name)) for f in ROLLOUT_FIELDS))
    return dataclasses.replace(
        rows.judge(),
        rollouts=empty,
        responses=[BLANK] * len(rows.responses),
        verdicts=[Verdict.wrong] * len(rows.responses),
        hint=np.full_like(rows.hint, -1),
    )


class Generator:
    """Samples completions of prompts, reads their answers and has them judged by worker processes."""

    def __init__(
        self, model_config, mesh, tokenizer: Tokenizer, pool: VerifierPool, *,
        template: str, max_prompt_length: int, answer_format: str, num_generations: int,
        max_completion_length: int, temperature: float, seed: int,
    ):  # fmt: skip
        self._model_config, self._mesh, self._pool = model_config, mesh, pool
        self.tokenizer, self.answer_format = tokenizer, answer_format
        self._template, self.max_prompt_length = template, max_prompt_length
        self._num_generations, self._temperature = num_generations, temperature
        self._max_completion_length, self._seed = max_completion_length, seed

    def prompts(self, problems: Sequence[Problem], keys: np.ndarray) -> Prompts:
        """The problems as a batch of prompts."""
        return make_prompts(problems, self.tokenizer, self._template, self.max_prompt_length, keys)

    def fits(self, problem: Problem) -> bool:
        """Whether the problem's prompt is short enough."""
        return fits(problem, self.tokenizer, self._template, self.max_prompt_length)

    def __call__(self, params, prompts: Prompts, step: int, timer) -> Rows:
        """Completions of every prompt; their verdicts are still pending."""
        with timer("rollout"):
            tokens, mask, keys = mesh_lib.put_batch(
                self._mesh, (prompts.tokens, prompts.mask, prompts.keys)
            )
            rollouts = sample(
                self._model_config,
                params,
                Prompts(tokens, mask, keys),
                self._num_generations,
                self._seed,
                self._max_completion_length,
                self._temperature,
                step=step,
            )
            rollouts = mesh_lib.fetch(rollouts)
        with timer("read"):
            problems = [p for p in prompts.problems for _ in range(self._num_generations)]
            responses = read_responses(
                rollouts, self.tokenizer, self.answer_format, [p.kind for p in problems]
            )
            judging = self._pool.submit(
                [(p.kind, p.answer, r.answer) for p, r in zip(problems, responses, strict=True)]
            )
        repeat = lambda x: np.repeat(x, self._num_generations, axis=0)  # noqa: E731
        return Rows(
            list(prompts.problems),
            repeat(prompts.tokens),
            repeat(prompts.mask),
            rollouts,
            responses,
            lambda: mesh_lib.first_host_choice(list(Verdict), judging.result()),
            [],
            np.full(len(responses), -1, np.int8),
        )


@dataclasses.dataclass
class Gathered:
    """The rows to train on, everything that was sampled without hints for them, and the counts."""

    rows: Rows
    sampled: Rows
    kept: list[bool]  # one a sampled prompt
    costs: dict[str, int]
    num_tokens: int


def gather(
    generate: Generator,
    draw: Callable[[], tuple[Sequence[Problem], np.ndarray]],
    params,
    step: int,
    timer,
    *,
    dynamic: bool = False,
    max_resample: int = 3,
    scaffold: "Scaffold | None" = None,
    num_mini_batches: int = 1,
) -> Gathered:
    """One batch of rows: `draw()` gives problems and keys, as many as the batch has prompts.

    `dynamic` (DAPO): only groups that are neither all right nor all wrong are kept, and prompts are drawn
    again, at most `max_resample` times, until the batch is full; what is still missing then is blank.
    `scaffold` (Scaf-GRPO): groups that are all wrong are tried again with hints.
    """
    parts, kept, sampled, num_tokens = [], [], [], 0
    hints = dict.fromkeys(("prompts", "generated", "replaced"), 0)
    missing = None
    for _ in range(1 + max_resample if dynamic else 1):
        prompts = generate.prompts(*draw())
        rows = generate(params, prompts, step, timer)
        sampled.append(rows)
        num_tokens += int(rows.rollouts.lengths.sum() + prompts.mask.sum())
        if scaffold is not None:
            rows, report = scaffold(generate, params, rows, prompts.keys, step, timer)
            hints = {name: hints[name] + report[name] for name in hints}
            num_tokens += report["tokens"]
        if not dynamic:
            parts, kept = [rows], [True] * len(rows.problems)
            break
        with timer("verify"):
            mixed = selection.mixed_groups(rows.num_correct, rows.num_generations)
        missing = len(rows.problems) if missing is None else missing
        chosen = np.flatnonzero(mixed)[:missing]
        kept += np.isin(np.arange(len(rows.problems)), chosen).tolist()
        parts.append(rows.take(chosen))
        missing -= len(chosen)
        if not missing:
            break
    if missing:
        parts.append(blank(rows.take(range(missing))))
    costs = {
        "sampling/generated_prompts": sum(len(s.problems) for s in sampled),
        "sampling/kept_prompts": sum(kept),
    }
    if scaffold is not None:
        costs |= {
            "sampling/hinted_prompts": hints["prompts"],
            "sampling/hinted_generated_prompts": hints["generated"],
            "sampling/hinted_rollouts": hints["replaced"],
        }
    rows = parts[0] if len(parts) == 1 else concatenate(parts)
    if missing:  # every optimiser step gets its share of the blanks
        order = np.arange(len(rows.problems)).reshape(-1, num_mini_batches).T
        rows = rows.take(order.reshape(-1))
    everything = sampled[0] if len(sampled) == 1 else concatenate(sampled)
    return Gathered(rows, everything, kept, costs, num_tokens)


@dataclasses.dataclass(frozen=True)
class Scaffold:
    """Scaf-GRPO: all-wrong groups are sampled again with hints, the weakest first.

    The first right rollout of the weakest hint that brings one takes the place of the group's last. It
    keeps the hinted prompt it was sampled from, so that its ratio stays that of its own policy [as
    interpreted]. Hints come with the problems; a hinted prompt that is too long is left out.
    """

    template: str
    max_hints: int

    def __call__(self, generate: Generator, params, rows: Rows, keys, step: int, timer):
        """(rows with replacements, counts).

        Counts: `prompts` tried, `generated`: the same once per hint, rollouts `replaced`, `tokens`.
        """
        with timer("verify"):
            wrong = np.flatnonzero(rows.num_correct == 0)
        batch, size = len(rows.problems), rows.num_generations
        successes = np.zeros((self.max_hints, batch, size), bool)
        levels: list[tuple[Rows, list[int]] | None] = []
        tried, generated, tokens = set(), 0, 0
        for level in range(self.max_hints):
            open_ = [p for p in wrong if not successes[:, p].any()]
            hinted = {p: self.hinted(rows.problems[p], level) for p in open_}
            hinted = {p: h for p, h in hinted.items() if h is not None and generate.fits(h)}
            levels.append(None)
            if not hinted:
                continue
            # one shape for any number of prompts
            places = [*hinted] + [next(iter(hinted))] * (batch - len(hinted))
            salt = f"hint {level}".encode()
            own_keys = np.array([zlib.crc32(salt, int(keys[p])) for p in places], np.uint32)
            prompts = generate.prompts([hinted[p] for p in places], own_keys)
            tries = generate(params, prompts, step, timer)
            with timer("verify"):
                right = tries.correct.reshape(batch, size) > 0.5
            for place, p in enumerate(hinted):
                successes[level, p] = right[place]
            tried |= hinted.keys()
            generated += len(hinted)
            real = tries.take(range(len(hinted)))  # without the repeated ones
            tokens += int(real.rollouts.lengths.sum() + real.prompt_mask[::size].sum())
            levels[-1] = (tries, list(hinted))
        found = selection.weakest_hints(successes)
        replaced = [(p, *found[p]) for p in range(batch) if found[p, 0] >= 0]
        if replaced:
            rows = rows.take(range(batch))  # a copy: what was sampled stays as it was
        for p, level, generation in replaced:
            tries, order = levels[level]
            _replace(rows, p * size + size - 1, tries, order.index(p) * size + generation, level)
        return rows, {
            "prompts": len(tried),
            "generated": generated,
            "replaced": len(replaced),
            "tokens": tokens,
        }

    def hinted(self, problem: Problem, level: int) -> Problem | None:
        """The problem with its hint of a level, None when it has no such hint."""
        if level >= len(problem.hints):
            return None
        text = self.template.replace("{hint}", problem.hints[level])
        return dataclasses.replace(problem, problem=text.replace("{problem}", problem.problem))


def _replace(rows: Rows, row: int, source: Rows, other: int, level: int) -> None:
    """Put another batch's rollout, with its prompt, in the place of one row."""
    for target, new in (
        (rows.prompt_tokens, source.prompt_tokens),
        (rows.prompt_mask, source.prompt_mask),
        *(
            (getattr(rows.rollouts, f.name), getattr(source.rollouts, f.name))
            for f in ROLLOUT_FIELDS
        ),
    ):
        target[row] = new[other]
    rows.responses[row], rows.verdicts[row] = source.responses[other], source.verdicts[other]
    rows.hint[row] = level
