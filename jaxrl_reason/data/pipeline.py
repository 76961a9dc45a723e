"""The stream of training problems: a deterministic shuffle per epoch, resumable at any batch (grain)."""

import zlib
from collections.abc import Callable, Sequence

import grain
import numpy as np

from jaxrl_reason.data.tasks import Problem

MAX_SKIPPED = 10_000  # in one batch: then the length limit fits no problem


class ProblemStream:
    """Endless batches of problems from a source, reshuffled every epoch by `seed`.

    Problems for which `keep` is false are skipped and counted (`skipped`). `state()` is a small JSON
    value; `restore(state)` continues at the very next problem.
    """

    def __init__(
        self,
        source: Sequence[Problem],
        batch_size: int,
        seed: int,
        keep: Callable[[Problem], bool] = lambda problem: True,
    ):
        self._source, self._batch_size, self._keep = source, batch_size, keep
        # positions, not problems, travel through grain: the epoch is read off them
        positions = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
        self._iterator = iter(positions.to_iter_dataset())
        self._drawn = 0
        self.skipped = 0

    def __next__(self) -> tuple[list[Problem], np.ndarray]:
        """The next batch, and the key of each problem's rollouts (uint32, of its id and epoch)."""
        problems, keys, skipped = [], [], 0
        while len(problems) < self._batch_size:
            problem = self._source[int(next(self._iterator))]
            epoch = self._drawn // len(self._source)
            self._drawn += 1
            if self._keep(problem):
                problems.append(problem)
                keys.append(rollout_key(problem.id, epoch))
            else:
                skipped += 1
                if skipped >= MAX_SKIPPED:
                    raise ValueError(
                        f"data.max_prompt_length: {skipped} of the last {skipped + len(problems)} "
                        "problems are too long"
                    )
        self.skipped += skipped
        return problems, np.asarray(keys, np.uint32)

    def state(self) -> dict:
        """Where the stream stands."""
        return {
            "drawn": self._drawn,
            "skipped": self.skipped,
            "source": fingerprint(self._source),
            "iterator": self._iterator.get_state(),
        }

    def restore(self, state: dict) -> None:
        """Continue where `state` was taken. Raises ValueError when the source has changed since."""
        if state["source"] != fingerprint(self._source):
            raise ValueError(
                f"data.source: the checkpoint was made with {state['source']}, now there is "
                f"{fingerprint(self._source)}; resuming would repeat or skip problems"
            )
        self._iterator.set_state(state["iterator"])
        self._drawn, self.skipped = state["drawn"], state["skipped"]


def fingerprint(source: Sequence[Problem]) -> str:
    """Size of a source, and a checksum of the ids and answers of a list."""
    if not isinstance(source, list):
        return f"{len(source)} procedural problems"
    text = "\n".join(f"{p.id}\t{p.answer}" for p in source)
    return f"{len(source)} problems, checksum {zlib.crc32(text.encode()):08x}"


def rollout_key(problem_id: str, epoch: int = 0) -> int:
    """32-bit key of a problem's rollouts; another one each epoch, the same in every run."""
    return zlib.crc32(f"{epoch}/{problem_id}".encode())
