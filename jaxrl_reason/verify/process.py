"""The parent's end of one worker process: start it, ask it, kill it."""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

from jaxrl_reason.verify.verdict import Verdict

logger = logging.getLogger(__name__)

# (kind, gold, prediction); kind is "math", "countdown" or an import path "module:function".
Item = tuple[str, str, str | None]

START_LIMIT_S = 120.0


class WorkerStartError(RuntimeError):
    """A worker process could not be started; the message holds what it wrote to stderr."""


class _WorkerDied(Exception):
    pass


class _WorkerTimeout(Exception):
    pass


class WorkerProcess:
    """One process and its pipes. Used by one thread; only `kill` may be called from others."""

    def __init__(self, memory_bytes: int):
        """Start the process, without waiting for it. Raises WorkerStartError."""
        self.items_judged = 0
        self._unread = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        # The worker finds the modules its parent finds, wherever that was started from.
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxrl_reason.verify.worker", str(memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, "PYTHONPATH": search_path},
                start_new_session=True,  # Ctrl-C in the terminal is for the parent only
            )
        except OSError as error:
            raise WorkerStartError(f"verifier worker did not start: {error}") from error

    def wait_until_ready(self) -> None:
        """Block while it imports SymPy. Raises WorkerStartError with its stderr."""
        try:
            self._read_line(START_LIMIT_S)
        except (_WorkerDied, _WorkerTimeout) as failure:
            self.kill()
            self._stderr.seek(0)
            stderr = self._stderr.read()[-4000:].decode("utf-8", "replace").strip()
            raise WorkerStartError(
                f"verifier worker did not start ({type(failure).__name__.lstrip('_')}):\n{stderr}"
            ) from failure

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def judge(self, item: Item, timeout_s: float) -> Verdict:
        """The verdict on one item; after `timeout` or a death the process is gone."""
        kind, gold, prediction = item
        request = {"kind": kind, "gold": gold, "prediction": prediction, "timeout_s": timeout_s}
        self.items_judged += 1
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._read_line(timeout_s))
            verdict = Verdict(reply["verdict"])
        except _WorkerTimeout:
            self.kill()
            return Verdict.timeout
        except (_WorkerDied, OSError, ValueError, KeyError, TypeError) as failure:
            self.kill()
            if self._process.returncode == -signal.SIGALRM:  # its own timer was faster than ours
                return Verdict.timeout
            logger.debug("worker ended with %s (%r)", self._process.returncode, failure)
            return Verdict.error
        if verdict is Verdict.error:
            logger.debug("comparison failed: %s", reply["detail"])
        return verdict

    def _read_line(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not poller.poll(remaining_s * 1000):
                raise _WorkerTimeout
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise _WorkerDied
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process, whatever it does; a thread that waits for its reply wakes up."""
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Kill the process and close the pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):  # a request that was never read is still buffered
                pipe.close()
