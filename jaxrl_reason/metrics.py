"""Metrics of a run: merged as (sum, count), divided once, written as JSONL and TensorBoard."""

import contextlib
import json
import math
import os
import time

import numpy as np


def finalise(pairs: dict) -> dict:
    """Values of (sum, count) pairs, NaN where the count is 0; plain numbers pass. Vectors become lists."""
    out = {}
    for name, value in pairs.items():
        if isinstance(value, tuple):
            total, count = (np.asarray(x, np.float64) for x in value)
            value = total / count if np.all(count > 0) else np.full_like(total, math.nan)
        value = np.asarray(value)
        out[name] = value.tolist() if value.ndim else value.item()
    return out


class PhaseTimer:
    """Wall-clock seconds by phase of one step, as `seconds/<phase>`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict:
        """Seconds of each phase, and `step_time`, the seconds since this timer was made."""
        total = time.perf_counter() - self._start
        return {f"seconds/{k}": v for k, v in self.seconds.items()} | {"step_time": total}


class JsonlLog:
    """An append-only JSONL file of rows with a `step`; rows beyond `last_step` are dropped on opening.

    After a crash the rows since the last checkpoint are computed again; dropping them first keeps the
    file without gaps and doubles. Row s describes the step that led to state s.
    """

    def __init__(self, path: str, last_step: int):
        kept = []
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                for line in f:
                    # a last line cut off by a crash belongs to a step that will be repeated
                    if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                        kept.append(line)
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            f.writelines(kept)
        os.replace(path + ".tmp", path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def write(self, row: dict) -> None:
        """Append one row; non-finite numbers become null."""
        self._file.write(json.dumps(_jsonable(row), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardLog:
    """Scalars for TensorBoard; events after `last_step` of a crashed run are purged."""

    def __init__(self, folder: str, last_step: int):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(folder, purge_step=last_step + 1)

    def write(self, row: dict) -> None:
        """Write the numbers of a row at its `step`."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


def _jsonable(value):
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
