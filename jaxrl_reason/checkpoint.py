"""Orbax checkpoints of a run: train state on the mesh, and the position in the data, together.

Saved asynchronously and atomically (a checkpoint is complete or absent). The last `keep` are kept, and
the best one by the metric given at saving. The frozen start policy π_0 is not saved: it is read from the
model folder again, whose fingerprint must be the same.
"""

import hashlib
import os

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxrl_reason.types import TrainState

METRIC = "score"


class Checkpoints:
    """The checkpoints/ folder of a run. Steps count finished updates."""

    def __init__(self, folder: str, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(
                [
                    LatestN(n=keep),
                    BestN(
                        n=1,
                        get_metric_fn=lambda metrics: metrics[METRIC],
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            best_fn=lambda metrics: metrics[METRIC],
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(os.path.abspath(folder), options=options)

    @property
    def latest(self) -> int | None:
        """The last complete step, None in a fresh run."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All complete steps that are kept."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The kept step with the highest metric."""
        return self._manager.best_step()

    def save(self, step: int, state: TrainState, extra: dict, score: float | None) -> None:
        """Start saving; returns once the arrays have been copied. `extra` is JSON."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dict(state)), extra=ocp.args.JsonSave(extra)
            ),
            metrics=None if score is None or score != score else {METRIC: float(score)},
        )

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        """State (on the shardings of `abstract`) and extra of a step."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_as_dict(abstract)), extra=ocp.args.JsonRestore()
            ),
        )
        return TrainState(**restored["state"]), restored["extra"]

    def close(self) -> None:
        """Wait for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _as_dict(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def fingerprint(folder: str) -> str:
    """Short hash of a model folder's weights: names, sizes, first and last MiB of each file."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(n for n in os.listdir(folder) if n.endswith(".safetensors")):
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        digest.update(f"{name}:{size}".encode())
        with open(path, "rb") as f:
            digest.update(f.read(1 << 20))
            f.seek(max(0, size - (1 << 20)))
            digest.update(f.read())
    return digest.hexdigest()
