"""From prompts to a batch ready for the update: rollout -> verify -> signals -> reward -> advantage.

Everything that travels between the phases is NumPy on the host; the device sees fixed shapes.
"""

import dataclasses
import functools

import jax
import numpy as np

from jaxrl_reason import diagnostics
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.prompts import answer_format
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.objectives.surrogate import loss_weights
from jaxrl_reason.recipes import Recipe, broadcast_advantages
from jaxrl_reason.rollout import sample
from jaxrl_reason.rollout.responses import Response, read_responses
from jaxrl_reason.signals.ablated import ablated_rows
from jaxrl_reason.signals.score import score
from jaxrl_reason.types import Prompts, Rollouts, Signals
from jaxrl_reason.verify import Verdict, VerifierPool


@dataclasses.dataclass(frozen=True)
class Experience:
    """One step's rollouts with everything known about them; host arrays."""

    batch: dict  # what the update reads, [B, …]
    metrics: dict  # (sum, count) pairs and numbers
    rollouts: Rollouts
    responses: list[Response]
    verdicts: list[Verdict]
    signals: Signals
    reward: np.ndarray
    terms: dict
    advantages: np.ndarray


class Collector:
    """Makes Experiences with the recipe, model and mesh of a run's parts."""

    def __init__(self, config, parts, pool: VerifierPool):
        self.config, self.pool = config, pool
        self.model_config, self.mesh, self.tokenizer = (
            parts.model_config,
            parts.mesh,
            parts.tokenizer,
        )
        self.recipe, self.ref_params = parts.recipe, parts.ref_params
        self._to_rollout_params = parts.to_rollout_params
        model_config, recipe, tokenizer = parts.model_config, parts.recipe, parts.tokenizer
        self._score = jax.jit(
            functools.partial(
                score,
                model_config,
                temperature=config.rollout.temperature,
                chunk_tokens=config.learner.chunk_tokens,
            )
        )
        self._credit = jax.jit(functools.partial(credit, config, recipe))
        self._answer_format = answer_format(config.data.template, config.data.answer_format)
        stub = config.ispo.ablated_stub
        self._stub = tokenizer.encode(stub) if stub else None

    def __call__(self, params, prompts: Prompts, step: int, timer) -> Experience:
        """Sample, verify and score one batch of prompts. `params` are the learner's masters."""
        settings = self.config.rollout
        with timer("rollout"):
            rollouts = self._sample(self._to_rollout_params(params), prompts, step)
        with timer("read"):
            problems = [p for p in prompts.problems for _ in range(settings.num_generations)]
            responses = read_responses(
                rollouts, self.tokenizer, self._answer_format, [p.kind for p in problems]
            )
            # judged by worker processes while the device computes the signals
            judging = self.pool.submit(
                [(p.kind, p.answer, r.answer) for p, r in zip(problems, responses, strict=True)]
            )
        with timer("signals"):
            rows = functools.partial(np.repeat, repeats=settings.num_generations, axis=0)
            prompt_tokens, prompt_mask = rows(prompts.tokens), rows(prompts.mask)
            fields = self._signals(params, prompt_tokens, prompt_mask, rollouts, responses)
        with timer("verify"):
            verdicts = mesh_lib.first_host_choice(list(Verdict), judging.result())
        with timer("credit"):
            signals = Signals(
                mask=rollouts.mask,
                correct=np.array([v == Verdict.correct for v in verdicts], np.float32),
                logp_sampler=rollouts.logp,
                truncated=rollouts.truncated,
                thinking=np.array([r.thinking for r in responses]),
                has_format=np.array([r.has_format for r in responses]),
                **fields,
            )
            reward, terms, advantages, weights, metrics = jax.device_get(self._credit(signals))
        for verdict in Verdict:
            count = sum(v == verdict for v in verdicts)
            metrics[f"verifier/{verdict.value}"] = (float(count), float(len(verdicts)))
        batch = {
            "prompt_tokens": prompt_tokens,
            "prompt_mask": prompt_mask,
            "tokens": rollouts.tokens,
            "mask": rollouts.mask,
            "logp_old": signals.logp,
            "advantages": advantages,
            "weights": weights,
        }
        if self.config.algorithm.beta:
            batch["logp_ref"] = signals.logp_ref
        return Experience(
            batch, metrics, rollouts, responses, verdicts, signals, reward, terms, advantages
        )

    def _sample(self, params, prompts, step) -> Rollouts:
        settings = self.config.rollout
        tokens, mask, keys = mesh_lib.put_batch(
            self.mesh, (prompts.tokens, prompts.mask, prompts.keys)
        )
        return mesh_lib.fetch(
            sample(
                self.model_config,
                params,
                Prompts(tokens, mask, keys),
                settings.num_generations,
                self.config.seed,
                settings.max_completion_length,
                settings.temperature,
                step=step,
            )
        )

    def _signals(self, params, prompt_tokens, prompt_mask, rollouts, responses) -> dict:
        """The model-made fields of Signals that the recipe needs (and always logp and entropy)."""
        own = (prompt_tokens, prompt_mask, rollouts.tokens, rollouts.mask)
        pending = {"own": self._dispatch(params, *own)}
        if "logp_ref" in self.recipe.needs:
            pending["ref"] = self._dispatch(self.ref_params, *own)
        if "answer_logp" in self.recipe.needs:
            tokens, mask, is_answer, source = ablated_rows(
                rollouts.tokens, [r.span for r in responses], self._stub
            )
            pending["ablated"] = self._dispatch(params, prompt_tokens, prompt_mask, tokens, mask)
        done = {name: _concatenate(mesh_lib.fetch(parts)) for name, parts in pending.items()}
        fields = dict(zip(("logp", "entropy"), done["own"], strict=True))
        if "ref" in done:
            fields["logp_ref"] = done["ref"][0]
        if "ablated" in done:
            with_thinking = np.take_along_axis(fields["logp"], source, axis=1)
            fields["answer_mask"] = is_answer
            fields["answer_logp"] = np.where(is_answer, with_thinking, 0.0)
            fields["answer_logp_ablated"] = np.where(is_answer, done["ablated"][0], 0.0)
        return fields

    def _dispatch(self, params, *rows) -> list:
        """Start scoring in the learner's micro-batches (its shapes); nothing is waited for."""
        size = self.config.learner.micro_batch_size
        return [
            self._score(
                params, *mesh_lib.put_batch(self.mesh, tuple(r[i : i + size] for r in rows))
            )
            for i in range(0, len(rows[0]), size)
        ]


def credit(config, recipe: Recipe, signals: Signals):
    """(reward [B], terms, advantages [B,T], loss weights [B,T], metrics) of a step; pure, jitted."""
    num_generations = config.rollout.num_generations
    reward, terms = recipe.reward(signals)
    advantages = broadcast_advantages(recipe.advantage(reward, signals), signals.mask)
    weights = loss_weights(
        signals.mask, config.algorithm.loss_type, config.rollout.max_completion_length
    )
    metrics = diagnostics.rollout_metrics(signals, reward, num_generations)
    metrics |= diagnostics.group_metrics(signals, advantages, num_generations)
    metrics |= diagnostics.token_metrics(signals, terms, config.ispo)
    if signals.answer_logp is not None:
        metrics |= diagnostics.ifd_metrics(signals, num_generations)
    if "ifd" in terms:
        metrics |= diagnostics.composite_metrics(
            signals, reward, terms, config.ispo, num_generations
        )
    return reward, terms, advantages, weights, metrics


def _concatenate(parts: list) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def rollout_records(experience: Experience, prompts: Prompts, tokenizer: Tokenizer, count: int):
    """JSON records of the first `count` prompts: text, verdict, reward terms, per-token signals."""
    e = experience
    per_prompt = len(e.responses) // len(prompts.problems)
    for p, problem in enumerate(prompts.problems[:count]):
        rows = range(p * per_prompt, (p + 1) * per_prompt)
        yield {
            "id": problem.id,
            "problem": problem.problem,
            "answer": problem.answer,
            "prompt": tokenizer.decode(prompts.tokens[p][prompts.mask[p]], skip_special=False),
            "rollouts": [_rollout_record(e, i, tokenizer) for i in rows],
        }


def _rollout_record(e: Experience, i: int, tokenizer: Tokenizer) -> dict:
    n = int(e.rollouts.lengths[i])
    ids = e.rollouts.tokens[i, :n]
    per_token = {
        "logp": e.signals.logp,
        "logp_sampler": e.rollouts.logp,
        "logp_ref": e.signals.logp_ref,
        "entropy": e.signals.entropy,
        "advantage": e.advantages,
        "critical": e.terms.get("critical"),
    }
    span = e.responses[i].span
    return {
        "text": e.responses[i].text,
        "answer": e.responses[i].answer,
        "verdict": e.verdicts[i].value,
        "truncated": bool(e.rollouts.truncated[i]),
        "reward": float(e.reward[i]),
        "terms": {k: float(v[i]) for k, v in e.terms.items() if v.ndim == 1},
        "answer_tokens": None if span is None else list(span),
        "tokens": [piece.decode(errors="replace") for piece in tokenizer.token_bytes(ids)],
        "token_ids": ids.tolist(),
        "signals": {k: v[i, :n].tolist() for k, v in per_token.items() if v is not None},
    }
