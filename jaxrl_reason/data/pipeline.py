"""The stream of training problems: a deterministic shuffle per epoch, resumable at any batch (grain)."""

import zlib
from collections.abc import Sequence

import grain
import numpy as np

from jaxrl_reason.data.tasks import Problem


class ProblemStream:
    """Endless batches of (problem, epoch) from a source, reshuffled every epoch by `seed`.

    `state()` is a small JSON value; `restore(state)` continues at the very next problem.
    """

    def __init__(self, source: Sequence[Problem], batch_size: int, seed: int):
        self._size, self._batch_size = len(source), batch_size
        # positions, not problems, travel through grain: the epoch is read off them
        positions = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
        self._source = source
        self._iterator = iter(positions.to_iter_dataset())
        self._drawn = 0

    def __next__(self) -> tuple[list[Problem], np.ndarray]:
        """The next batch, and the key of each problem's rollouts (uint32, of its id and epoch)."""
        problems, keys = [], []
        for _ in range(self._batch_size):
            problem = self._source[int(next(self._iterator))]
            problems.append(problem)
            keys.append(rollout_key(problem.id, self._drawn // self._size))
            self._drawn += 1
        return problems, np.asarray(keys, np.uint32)

    def state(self) -> dict:
        """Where the stream stands."""
        return {"drawn": self._drawn, "size": self._size, "iterator": self._iterator.get_state()}

    def restore(self, state: dict) -> None:
        """Continue where `state` was taken. Raises ValueError when the source has changed in size."""
        if state["size"] != self._size:
            raise ValueError(
                f"data.source: the checkpoint was made with {state['size']} problems, now there are "
                f"{self._size}; resuming would repeat or skip problems"
            )
        self._iterator.set_state(state["iterator"])
        self._drawn = state["drawn"]


def rollout_key(problem_id: str, epoch: int = 0) -> int:
    """32-bit key of a problem's rollouts; another one each epoch, the same in every run."""
    return zlib.crc32(f"{epoch}/{problem_id}".encode())
