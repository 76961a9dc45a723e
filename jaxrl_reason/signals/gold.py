"""Rows for PACR: the reference answer after each of a response's first k steps of thinking.

A step ends where the expression `step_end` matches; the thinking ends at the answer's opening, and what
stands from there on belongs to the last step. Assembled in NumPy from the sampled ids.
"""

import dataclasses
import re
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from jaxrl_reason.verify import AnswerTokens


@dataclasses.dataclass(frozen=True)
class GoldRows:
    """Rows [N,·] to score, each different from the others, and where the sums go.

    `prompt_row` [N]: whose prompt a row follows. `is_answer` marks the reference answer's tokens. `source`
    [B,K+1]: the row of c_k (beyond `num_steps`: of the last).
    """

    tokens: np.ndarray
    mask: np.ndarray
    is_answer: np.ndarray
    prompt_row: np.ndarray
    source: np.ndarray
    num_steps: np.ndarray
    step_of_token: np.ndarray


def step_ends(pieces: Sequence[bytes], step_end: re.Pattern[bytes], max_steps: int) -> list[int]:
    """Token counts after which each step of the thinking `pieces` ends; the last is their number.

    A token that holds an end and more closes the step. Steps beyond `max_steps` join the last. No
    pieces: [0], one step of nothing.
    """
    ends = list(accumulate(map(len, pieces)))
    found = {int(np.searchsorted(ends, m.end())) + 1 for m in step_end.finditer(b"".join(pieces))}
    inner = sorted(e for e in found if e < len(pieces))
    return [*inner[: max_steps - 1], len(pieces)]


def gold_rows(
    tokens: np.ndarray,
    pieces: Sequence[Sequence[bytes]],
    spans: Sequence[AnswerTokens | None],
    gold: Sequence[tuple[Sequence[int], Sequence[bool]]],
    num_generations: int,
    step_end: str,
    max_steps: int,
) -> GoldRows:
    """Rows of first k steps ⊕ reference answer, for every rollout and k = 0 … its number of steps.

    `pieces` are the bytes of each rollout's tokens, `gold` per rollout the ids of the answer in its place
    and which of them are the answer. Equal rows of one prompt (the G rows of a group) are made once.
    """
    pattern = re.compile(step_end.encode())
    rows: dict[tuple, int] = {}
    sources, num_steps = [], []
    step_of_token = np.zeros(tokens.shape, np.int32)
    for b, (own, span) in enumerate(zip(pieces, spans, strict=True)):
        thinking = own[: len(own) if span is None else span.opening_start]
        ends = step_ends(thinking, pattern, max_steps)
        num_steps.append(len(ends))
        step_of_token[b] = np.minimum(
            np.searchsorted(ends, np.arange(tokens.shape[1]), side="right"), len(ends) - 1
        )
        group = b - b % num_generations
        ids, answer = gold[b]
        sources.append(
            [
                rows.setdefault(
                    (group, tuple(tokens[b, :end]), tuple(ids), tuple(answer)), len(rows)
                )
                for end in (0, *ends)
            ]
        )
    longest = max(len(prefix) + len(ids) for _, prefix, ids, _ in rows)
    most = tokens.shape[1] + max(len(ids) for ids, _ in gold)
    length = min(max(8, 1 << (longest - 1).bit_length()), most)  # powers of two: few shapes
    out = np.zeros((len(rows), length), np.int32)
    mask, is_answer = np.zeros(out.shape, bool), np.zeros(out.shape, bool)
    for (_, prefix, ids, answer), n in rows.items():
        end = len(prefix) + len(ids)
        out[n, :end], mask[n, :end] = [*prefix, *ids], True
        is_answer[n, len(prefix) : end] = answer
    # one width whatever the responses: it is a shape of the compiled reward
    source = np.array([s + [s[-1]] * (max_steps + 1 - len(s)) for s in sources], np.int32)
    prompt_row = np.array([group for group, *_ in rows], np.int32)
    return GoldRows(
        out, mask, is_answer, prompt_row, source, np.array(num_steps, np.int32), step_of_token
    )
