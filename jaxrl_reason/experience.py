"""From problems to a batch ready for the update: rollout -> verify -> signals -> reward -> advantage.

Everything that travels between the phases is NumPy on the host; the device sees fixed shapes.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_reason import diagnostics, selection
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.prompts import answer_format
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.generation import Gathered, Generator, Rows, Scaffold, gather
from jaxrl_reason.model import lora
from jaxrl_reason.objectives.surrogate import loss_weights, truncated_importance
from jaxrl_reason.recipes import Recipe, broadcast_advantages
from jaxrl_reason.signals.ablated import ablated_rows
from jaxrl_reason.signals.gold import gold_rows
from jaxrl_reason.signals.prompt import perplexity, score_prompts
from jaxrl_reason.signals.score import score
from jaxrl_reason.types import Signals
from jaxrl_reason.verify import Verdict, VerifierPool, answer_tokens, write_answer


@dataclasses.dataclass(frozen=True)
class Experience:
    """One step's rollouts with everything known about them; host arrays."""

    batch: dict  # what the update reads, [B, …]
    metrics: dict  # (sum, count) pairs and numbers
    gathered: Gathered
    signals: Signals
    reward: np.ndarray
    terms: dict
    advantages: np.ndarray

    @property
    def rows(self) -> Rows:
        """The rollouts that are trained on."""
        return self.gathered.rows


class Collector:
    """Makes Experiences with the recipe, model and mesh of a run's parts."""

    def __init__(self, config, parts, pool: VerifierPool):
        self.config, self.recipe, self._parts = config, parts.recipe, parts
        settings = config.rollout
        self.generate = Generator(
            parts.model_config, parts.mesh, parts.tokenizer, pool,
            template=config.data.template,
            max_prompt_length=config.data.max_prompt_length,
            answer_format=answer_format(config.data.template, config.data.answer_format),
            num_generations=settings.num_generations,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            seed=config.seed,
        )  # fmt: skip
        scoring = {
            "temperature": settings.temperature,
            "chunk_tokens": config.learner.chunk_tokens,
        }
        base_config = lora.without_lora(parts.model_config)
        self._score = jax.jit(functools.partial(score, parts.model_config, **scoring))
        # π_0 is the model with adapters off: with LoRA the same weights, less the adapters
        self._score_ref = (
            self._score
            if base_config == parts.model_config
            else jax.jit(functools.partial(score, base_config, **scoring))
        )
        self._score_prompts = jax.jit(
            functools.partial(score_prompts, parts.model_config, **scoring)
        )
        self._credit = jax.jit(functools.partial(credit, config, self.recipe))
        stub = config.ispo.ablated_stub
        self._stub = parts.tokenizer.encode(stub) if stub else None

    def __call__(self, trained, step: int, timer) -> Experience:
        """Draw, sample, select, verify and score. `trained` are the learner's master parameters."""
        algorithm = self.config.algorithm
        params = self._parts.whole(trained)
        sampling = self._parts.to_rollout_params(params)
        gathered = gather(
            self.generate,
            functools.partial(self._draw, params, step, timer),
            sampling,
            step,
            timer,
            dynamic=algorithm.dynamic_sampling,
            max_resample=algorithm.max_resample,
            scaffold=self._scaffold(step),
            num_mini_batches=algorithm.num_mini_batches,
        )
        del sampling
        rows = gathered.rows
        with timer("signals"):  # while worker processes judge the answers
            fields = self._signals(params, rows)
        with timer("verify"):
            correct = rows.correct
        with timer("credit"):
            signals = Signals(
                mask=rows.rollouts.mask,
                correct=correct,
                logp_sampler=rows.rollouts.logp,
                truncated=rows.rollouts.truncated,
                **fields,
            )
            reward, terms, advantages, learn, metrics = jax.device_get(self._credit(signals))
        metrics |= completion_metrics(gathered) | gathered.costs
        if self.recipe.sampling == "perplexity":
            drawn = gathered.costs["sampling/generated_prompts"] * self.config.prepo.candidates
            metrics["sampling/candidate_prompts"] = drawn
        batch = {
            "prompt_tokens": rows.prompt_tokens,
            "prompt_mask": rows.prompt_mask,
            "tokens": rows.rollouts.tokens,
            "mask": rows.rollouts.mask,
            "logp_old": signals.logp,
            **learn,
        }
        if algorithm.beta:
            batch["logp_ref"] = signals.logp_ref
        return Experience(batch, metrics, gathered, signals, reward, terms, advantages)

    def _scaffold(self, step: int) -> Scaffold | None:
        section = self.config.scaf
        if self.recipe.sampling != "hints" or step <= section.warmup_steps:
            return None
        return Scaffold(section.template, section.max_hints)

    def _draw(self, params, step: int, timer):
        """Problems and keys of one batch of prompts."""
        if self.recipe.sampling != "perplexity":
            return next(self._parts.stream)
        batches = [next(self._parts.stream) for _ in range(self.config.prepo.candidates)]
        problems = [p for batch, _ in batches for p in batch]
        keys = np.concatenate([keys for _, keys in batches])
        wanted = len(batches[0][0])
        with timer("select"):
            values = [
                perplexity(*self.score_prompts(params, prompts.tokens, prompts.mask))
                for prompts in (self.generate.prompts(*batch) for batch in batches)
            ]
            # a small data set comes round within one step: each problem once, while there are enough
            once = np.unique([p.id for p in problems], return_index=True)[1]
            own = np.sort(once) if len(once) >= wanted else np.arange(len(problems))
            # ρ runs from 0 at the first step to 1 at the last
            done = min((step - 1) / max(self.config.num_steps - 1, 1), 1.0)
            window = selection.perplexity_window(np.concatenate(values)[own], wanted, done)
            chosen = own[window]
        return [problems[i] for i in chosen], keys[chosen]

    def score_prompts(self, params, tokens, mask) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs of the prompts' own tokens [P,S], and where there is one."""
        placed = mesh_lib.put_batch(self._parts.mesh, (tokens, mask))
        return mesh_lib.fetch(self._score_prompts(params, *placed))

    def _signals(self, params, rows: Rows) -> dict:
        """The model-made fields of Signals that the recipe needs (and always logp and entropy)."""
        needs, rollouts = self.recipe.needs, rows.rollouts
        prompts = (rows.prompt_tokens, rows.prompt_mask)
        own = (*prompts, rollouts.tokens, rollouts.mask)
        pending = {"own": self._dispatch(self._score, params, *own)}
        if "logp_ref" in needs:
            pending["ref"] = self._dispatch(self._score_ref, self._parts.ref_params, *own)
        if "answer_logp" in needs:
            tokens, mask, is_answer, source = ablated_rows(
                rollouts.tokens, [r.span for r in rows.responses], self._stub
            )
            pending["ablated"] = self._dispatch(self._score, params, *prompts, tokens, mask)
        if "gold_logp" in needs:
            gold = self._gold_rows(rows)
            placed = (x[gold.prompt_row] for x in prompts)
            pending["gold"] = self._dispatch(self._score, params, *placed, gold.tokens, gold.mask)
        fields = {}
        if "prompt_logp" in needs:
            heads = (x[:: rows.num_generations] for x in prompts)
            fields["prompt_logp"], fields["prompt_mask"] = self.score_prompts(params, *heads)
        done = {name: _concatenate(mesh_lib.fetch(parts)) for name, parts in pending.items()}
        fields |= dict(zip(("logp", "entropy"), done["own"], strict=True))
        if "ref" in done:
            fields["logp_ref"] = done["ref"][0]
        if "ablated" in done:
            with_thinking = np.take_along_axis(fields["logp"], source, axis=1)
            fields["answer_mask"] = is_answer
            fields["answer_logp"] = np.where(is_answer, with_thinking, 0.0)
            fields["answer_logp_ablated"] = np.where(is_answer, done["ablated"][0], 0.0)
        if "gold" in done:
            logp = done["gold"][0][: len(gold.tokens)]
            sums = np.where(gold.is_answer, logp, 0.0).sum(axis=1, dtype=np.float32)
            fields |= {
                "gold_logp": sums[gold.source],
                "num_steps": gold.num_steps,
                "step_of_token": gold.step_of_token,
            }
        return fields

    def _gold_rows(self, rows: Rows):
        """PACR's rows for the reference answers of the rollouts' problems."""
        tokenizer, form = self._parts.tokenizer, self.generate.answer_format
        gold = []
        for problem in rows.problems:
            ids = tokenizer.encode(write_answer(problem.answer, form))
            span = answer_tokens(tokenizer.token_bytes(ids), form)
            marked = [span is not None and span.start <= t < span.stop for t in range(len(ids))]
            gold += [(ids, marked)] * rows.num_generations
        # the end token is no thinking: nothing that follows it would be likely
        lengths = rows.rollouts.lengths - (rows.rollouts.lengths > 0) * ~rows.rollouts.truncated
        pieces = [
            tokenizer.token_bytes(ids[:n])
            for ids, n in zip(rows.rollouts.tokens, lengths, strict=True)
        ]
        spans = [r.span for r in rows.responses]
        section, size = self.config.pacr, rows.num_generations
        return gold_rows(
            rows.rollouts.tokens, pieces, spans, gold, size, section.step_end, section.max_steps
        )

    def _dispatch(self, scorer: Callable, params, *rows) -> list:
        """Start scoring in the learner's micro-batches (its shapes); nothing is waited for.

        A last micro-batch that is not full is filled with repeated rows.
        """
        size = self.config.learner.micro_batch_size
        short = -len(rows[0]) % size
        if short:
            rows = [np.concatenate([r, np.repeat(r[:1], short, axis=0)]) for r in rows]
        return [
            scorer(
                params, *mesh_lib.put_batch(self._parts.mesh, tuple(r[i : i + size] for r in rows))
            )
            for i in range(0, len(rows[0]), size)
        ]


def completion_metrics(gathered: Gathered) -> dict:
    """Metrics of everything that was sampled, also of groups that were not trained on."""
    rows = gathered.sampled
    metrics = diagnostics.completion_metrics(
        rows.rollouts.lengths,
        rows.rollouts.truncated,
        rows.correct,
        np.array([r.has_format for r in rows.responses]),
        np.array([r.thinking for r in rows.responses]),
        rows.num_generations,
    )
    for verdict in Verdict:
        count = sum(v == verdict for v in rows.verdicts)
        metrics[f"verifier/{verdict.value}"] = (float(count), float(len(rows.verdicts)))
    return metrics


def credit(config, recipe: Recipe, signals: Signals):
    """(reward [B], terms, advantages [B,T], what the loss reads, metrics) of a step; pure, jitted.

    What the loss reads: advantages (times the truncated importance weight, if on), loss_mask and weights,
    each [B,T]; the weights of every mini-batch are normalised over that mini-batch.
    """
    algorithm, num_generations = config.algorithm, config.rollout.num_generations
    reward, terms = recipe.reward(signals)
    advantages = broadcast_advantages(recipe.advantage(reward, signals), signals.mask)
    loss_mask = recipe.tokens(signals)
    weights = [
        loss_weights(own, algorithm.loss_type, config.rollout.max_completion_length)
        for own in jnp.split(loss_mask, algorithm.num_mini_batches)
    ]
    learn = {"advantages": advantages, "loss_mask": loss_mask, "weights": jnp.concatenate(weights)}
    metrics = diagnostics.reward_metrics(signals, reward, num_generations)
    if algorithm.importance_sampling_cap:
        factor = truncated_importance(
            signals.logp, signals.logp_sampler, signals.mask, algorithm.importance_sampling_cap
        )
        learn["advantages"] = advantages * factor
        metrics["sampling/importance_sampling_ratio/mean"] = diagnostics.mean_pair(
            factor, signals.mask
        )
    counted = jnp.where(loss_mask, advantages, 0.0)
    metrics |= diagnostics.advantage_metrics(signals, counted, num_generations)
    metrics |= diagnostics.token_metrics(signals, terms, config.ispo)
    if signals.answer_logp is not None:
        metrics |= diagnostics.ifd_metrics(signals, num_generations)
    if "ifd" in terms:
        metrics |= diagnostics.composite_metrics(
            signals, reward, terms, config.ispo, num_generations
        )
    for name in ("overlong", "kl_penalty"):
        if name in terms:
            metrics[f"reward/{name}"] = diagnostics.mean_pair(terms[name], signals.present)
    return reward, terms, advantages, learn, metrics


def _concatenate(parts: list) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def rollout_records(experience: Experience, tokenizer: Tokenizer, count: int):
    """JSON records of the first `count` prompts: text, verdict, reward terms, per-token signals."""
    rows = experience.rows
    size = rows.num_generations
    filled = [p for p in range(len(rows.problems)) if rows.rollouts.lengths[p * size]]
    for p in filled[:count]:
        problem, own = rows.problems[p], range(p * size, (p + 1) * size)
        yield {
            "id": problem.id,
            "problem": problem.problem,
            "answer": problem.answer,
            "prompt": _prompt_text(rows, p * size, tokenizer),
            "rollouts": [_rollout_record(experience, i, tokenizer) for i in own],
        }


def _prompt_text(rows: Rows, i: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(rows.prompt_tokens[i][rows.prompt_mask[i]], skip_special=False)


def _rollout_record(e: Experience, i: int, tokenizer: Tokenizer) -> dict:
    rows = e.rows
    n = int(rows.rollouts.lengths[i])
    ids = rows.rollouts.tokens[i, :n]
    per_token = {
        "logp": e.signals.logp,
        "logp_sampler": rows.rollouts.logp,
        "logp_ref": e.signals.logp_ref,
        "entropy": e.signals.entropy,
        "advantage": e.advantages,
        "critical": e.terms.get("critical"),
        "in_loss": e.batch["loss_mask"],
    }
    span = rows.responses[i].span
    hinted = {"hinted_prompt": _prompt_text(rows, i, tokenizer)} if rows.hint[i] >= 0 else {}
    return hinted | {
        "text": rows.responses[i].text,
        "answer": rows.responses[i].answer,
        "verdict": rows.verdicts[i].value,
        "hint": int(rows.hint[i]),
        "truncated": bool(rows.rollouts.truncated[i]),
        "reward": float(e.reward[i]),
        "terms": {k: float(v[i]) for k, v in e.terms.items() if v.ndim == 1},
        "answer_tokens": None if span is None else list(span),
        "tokens": [piece.decode(errors="replace") for piece in tokenizer.token_bytes(ids)],
        "token_ids": ids.tolist(),
        "signals": {k: v[i, :n].tolist() for k, v in per_token.items() if v is not None},
    }
