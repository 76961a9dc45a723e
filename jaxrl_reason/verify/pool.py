"""A pool of worker processes that judge answers, with a hard time limit per item.

SymPy can run for hours, inside C code, on a ten-character answer. Only killing the process ends
that, so every comparison runs in a worker that one parent thread feeds and, if need be, kills.
Workers are fresh interpreters: no fork of a process that runs JAX threads, no re-import of the
caller's `__main__`.
"""

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Self

from jaxrl_reason.verify.process import Item, WorkerProcess, WorkerStartError
from jaxrl_reason.verify.verdict import Verdict

KNOWN_KINDS = ("math", "countdown")
START_ATTEMPTS = 3
ITEMS_PER_WORKER = 20_000  # SymPy's caches grow; a fresh process costs a second


class PoolClosed(RuntimeError):
    """The pool was closed before this batch was judged."""


class _Batch:
    """The items of one submit. Equal items are judged once and counted each."""

    def __init__(self, items: Sequence[Item], timeout_s: float):
        self.timeout_s = timeout_s
        self.future: Future[list[Verdict]] = Future()
        self.future.set_running_or_notify_cancel()  # a batch cannot be cancelled, only closed
        self._items = items
        self._lock = threading.Lock()
        # No answer needs no worker.
        self._verdicts = {item: Verdict.unparsable for item in items if item[2] is None}
        self.to_judge = [item for item in dict.fromkeys(items) if item[2] is not None]
        self._num_distinct = len(self._verdicts) + len(self.to_judge)

    def set_verdict(self, item: Item, verdict: Verdict) -> None:
        with self._lock:
            self._verdicts[item] = verdict
            complete = len(self._verdicts) == self._num_distinct
        if complete:
            self.finish()

    def finish(self) -> None:
        self._resolve(self.future.set_result, [self._verdicts[item] for item in self._items])

    def fail(self, error: Exception) -> None:
        self._resolve(self.future.set_exception, error)

    def _resolve(self, resolve: Callable, outcome: object) -> None:
        # Outside the lock, because it runs the caller's callbacks.
        with contextlib.suppress(InvalidStateError):  # closed and finished at the same moment
            resolve(outcome)


def _check(kind: str, gold: str, prediction: str | None) -> None:
    if kind not in KNOWN_KINDS and ":" not in kind:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KNOWN_KINDS)}")
    if not isinstance(gold, str) or not isinstance(prediction, str | None):
        raise TypeError(f"gold and prediction must be strings, got {gold!r}, {prediction!r}")


class VerifierPool:
    """Judges (kind, gold, prediction) items in `num_workers` processes.

    Each item may take `timeout_s` seconds of wall time; then its worker is killed and replaced,
    and that item alone is `timeout`. An item whose worker dies (crash, more than `memory_gib` of
    address space) is `error`. Neither changes the verdict of any other item. The start of a worker
    counts against no item.

    Safe to use from several threads. Use it as a context manager or call `close`.
    """

    def __init__(self, num_workers: int = 1, timeout_s: float = 5.0, memory_gib: float = 4.0):
        if num_workers < 1 or timeout_s <= 0 or memory_gib <= 0:
            raise ValueError(f"need positive {num_workers=}, {timeout_s=}, {memory_gib=}")
        self._timeout_s = timeout_s
        self._memory_bytes = int(memory_gib * 2**30)
        self._owner_pid = os.getpid()
        self._queue: SimpleQueue[tuple[_Batch, Item] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended_by: Exception | None = None
        self._batches: set[_Batch] = set()
        self._workers: set[WorkerProcess] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"verifier-{index}", daemon=True)
            for index in range(num_workers)
        ]
        _open_pools.add(self)
        for thread in self._threads:
            thread.start()

    def submit(
        self, items: Sequence[Item], timeout_s: float | None = None
    ) -> Future[list[Verdict]]:
        """Queue items; the future holds one verdict per item, in their order.

        A prediction of None is `unparsable`. `timeout_s` (seconds per item) replaces the pool's.
        Raises ValueError on an unknown kind, TypeError on what is no string, `PoolClosed` after
        `close`, RuntimeError in a forked child. The future raises `WorkerStartError` when workers
        cannot be started and `PoolClosed` when the pool is closed first.
        """
        items = [tuple(item) for item in items]
        for item in items:
            _check(*item)
        if os.getpid() != self._owner_pid:
            raise RuntimeError("this pool belongs to the parent process; make one after the fork")
        batch = _Batch(items, timeout_s or self._timeout_s)
        with self._lock:
            if self._ended_by is not None:
                raise self._ended_by
            self._batches.add(batch)
        batch.future.add_done_callback(lambda _: self._batches.discard(batch))
        if not batch.to_judge:
            batch.finish()
        for item in batch.to_judge:
            self._queue.put((batch, item))
        return batch.future

    def verify(self, items: Sequence[Item], timeout_s: float | None = None) -> list[Verdict]:
        """`submit` and wait for the verdicts."""
        return self.submit(items, timeout_s).result()

    def close(self) -> None:
        """Kill the workers; batches still running raise `PoolClosed`. May be called repeatedly."""
        if os.getpid() != self._owner_pid:
            return
        self._end(PoolClosed("the verifier pool was closed"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, reason: Exception) -> None:
        with self._lock:
            if self._ended_by is None:
                self._ended_by = reason
            batches, workers = list(self._batches), list(self._workers)
        for batch in batches:  # before the kill, which would look like a crash of their items
            batch.fail(self._ended_by)
        for worker in workers:
            worker.kill()
        for _ in self._threads:
            self._queue.put(None)

    def _serve(self) -> None:
        """The life of one thread: keep one worker ready, feed it one item at a time."""
        worker = None
        try:
            while self._ended_by is None:
                worker = self._ready_worker(worker)
                task = self._queue.get()
                if task is None:
                    break
                batch, item = task
                if batch.future.done():
                    continue
                if not worker.is_alive():  # killed while idle, which is no fault of this item
                    worker = self._ready_worker(worker)
                batch.set_verdict(item, worker.judge(item, batch.timeout_s))
        except WorkerStartError as error:
            self._end(error)
        finally:
            self._retire(worker)

    def _ready_worker(self, worker: WorkerProcess | None) -> WorkerProcess:
        if worker and worker.is_alive() and worker.items_judged < ITEMS_PER_WORKER:
            return worker
        self._retire(worker)
        for attempts_left in reversed(range(START_ATTEMPTS)):
            worker = self._start_worker()
            try:
                worker.wait_until_ready()
                return worker
            except WorkerStartError:
                self._retire(worker)
                if not attempts_left or self._ended_by is not None:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self._memory_bytes)
        with self._lock:
            self._workers.add(worker)
            ended = self._ended_by is not None
        if ended:  # closed while it started
            worker.kill()
        return worker

    def _retire(self, worker: WorkerProcess | None) -> None:
        if worker is not None:
            with self._lock:
                self._workers.discard(worker)
            worker.release()


_open_pools: "weakref.WeakSet[VerifierPool]" = weakref.WeakSet()


@atexit.register
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        pool.close()
