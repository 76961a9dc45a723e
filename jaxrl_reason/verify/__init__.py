"""Answers: where they are in a response, and whether they are right.

`verify` judges one pair; a training loop submits batches to a `VerifierPool`. Nothing here
imports JAX, so worker processes start fast.
"""

import os
import threading

from jaxrl_reason.verify.countdown import extract_countdown
from jaxrl_reason.verify.extract import (
    AnswerTokens,
    answer_span,
    answer_tokens,
    extract,
    has_format,
    write_answer,
)
from jaxrl_reason.verify.pool import PoolClosed, VerifierPool
from jaxrl_reason.verify.process import WorkerStartError
from jaxrl_reason.verify.verdict import Verdict

__all__ = [
    "AnswerTokens",
    "PoolClosed",
    "Verdict",
    "VerifierPool",
    "WorkerStartError",
    "answer_span",
    "answer_tokens",
    "extract",
    "extract_answer",
    "has_format",
    "verify",
    "write_answer",
]

_shared_pool: VerifierPool | None = None
_shared_pool_pid: int | None = None
_shared_pool_lock = threading.Lock()


def extract_answer(text: str, kind: str = "math") -> str | None:
    r"""The answer in a whole response, or the text itself when it is a bare answer.

    Takes the last `\boxed{…}`, else the last `<answer>…</answer>` (the reverse for `countdown`).
    None when the last one is blank or a `\boxed` or `<answer>` never closes.
    """
    if r"\boxed" not in text and "<answer>" not in text:
        return text
    if kind == "countdown":
        return extract_countdown(text)
    return extract(text, "boxed" if has_format(text, "boxed") else "answer_tag")


def verify(
    gold: str, prediction: str | None, kind: str = "math", timeout_s: float = 5.0
) -> Verdict:
    r"""Judge one prediction, a bare answer or a whole response with a `\boxed{…}`.

    Not symmetric: the gold answer comes first. `kind` is `math` (gold a bare answer or LaTeX),
    `countdown` (gold a JSON object with `nums` and `target`) or an import path
    `module:function`. The comparison runs in a shared worker process and may take `timeout_s`
    seconds; the first call of a process also waits for that worker to start.

    Raises what `VerifierPool.submit` raises.
    """
    answer = None if prediction is None else extract_answer(prediction, kind)
    return _pool().verify([(kind, gold, answer)], timeout_s)[0]


def _pool() -> VerifierPool:
    """One worker for all one-shot calls of this process; a forked child gets its own."""
    global _shared_pool, _shared_pool_pid
    with _shared_pool_lock:
        if _shared_pool is None or _shared_pool_pid != os.getpid():
            _shared_pool, _shared_pool_pid = VerifierPool(num_workers=1), os.getpid()
        return _shared_pool
