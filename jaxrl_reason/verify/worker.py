"""A worker process: one JSON request per line on stdin, one JSON reply per line on stdout.

Started by `process.py` as `python -m jaxrl_reason.verify.worker MEMORY_BYTES`. Request:
`{"kind", "gold", "prediction", "timeout_s"}`; reply: `{"verdict", "detail"}`. The first line it
prints is `{"ready": true}`. The parent enforces the time limit; the timer here only ends a worker
whose parent is gone.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TextIO

from jaxrl_reason.verify.verdict import Verdict

KINDS = {
    "math": "jaxrl_reason.verify.math:compare_math",
    "countdown": "jaxrl_reason.verify.countdown:compare_countdown",
}
# How long after the time limit the kernel ends a worker that no parent has killed, in seconds.
GRACE_S = 2.0


@lru_cache
def comparison(kind: str) -> Callable[[str, str], Verdict]:
    """The function of a kind: a key of `KINDS` or an import path `module:function`."""
    module, _, function = KINDS.get(kind, kind).partition(":")
    return getattr(importlib.import_module(module), function)


def judge(kind: str, gold: str, prediction: str) -> tuple[Verdict, str]:
    """The verdict, and for `error` what was raised."""
    try:
        return Verdict(comparison(kind)(gold, prediction)), ""
    except MemoryError:
        # The heap is full or in pieces: leave, so that the next item gets a fresh process.
        os._exit(1)
    except Exception as error:  # noqa: BLE001 (SymPy raises anything)
        return Verdict.error, f"{type(error).__name__}: {error}"


def _limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))


def _claim_stdout() -> TextIO:
    """A private handle on stdout; what libraries print from now on goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _silence_stderr() -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    os.close(devnull)


def _send(replies: TextIO, message: dict) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def main(memory_bytes: int) -> None:
    """Serve requests until stdin ends."""
    # Ctrl-C is for the parent, which then closes our stdin. SIGALRM must kill even inside C code,
    # so it gets no Python handler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = _claim_stdout()
    _limit_resources(memory_bytes)
    # Pays for the imports and the first build of the parser before the clock of any item runs.
    comparison("math")(r"\frac{1}{2}x", r"0.5x")
    _send(replies, {"ready": True})
    _silence_stderr()
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request.pop("timeout_s") + GRACE_S)
        verdict, detail = judge(**request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, {"verdict": verdict, "detail": detail[:500]})


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except BrokenPipeError:
        os._exit(0)
