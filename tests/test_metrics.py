import json
import math

import numpy as np
import pytest

from jaxrl_reason.metrics import JsonlLog, PhaseTimer, TensorBoardLog, finalise


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_divided_once():
    row = finalise(
        {
            "mean": (np.float32(9.0), np.float32(4.0)),
            "vector": (np.array([1.0, 2.0]), 2.0),
            "number": np.float32(3.5),
            "count": 7,
        }
    )
    assert row == {"mean": 2.25, "vector": [0.5, 1.0], "number": 3.5, "count": 7}
    assert type(row["mean"]) is float and type(row["count"]) is int


def test_a_mean_over_nothing_is_no_number():
    row = finalise({"mean": (0.0, 0.0), "flag": (np.float32(0), np.False_)})
    assert math.isnan(row["mean"]) and math.isnan(row["flag"])


def test_rows_of_a_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonlLog(str(path), 0)
    log.write(
        {"step": 1, "a": math.nan, "b": np.float32(2.5), "c": [1.0, math.inf], "d": np.int32(3)}
    )
    log.close()
    assert read(path) == [{"step": 1, "a": None, "b": 2.5, "c": [1.0, None], "d": 3}]


def test_rows_are_on_disk_before_the_log_is_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonlLog(str(path), 0)
    log.write({"step": 1})
    assert read(path) == [{"step": 1}]
    log.close()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "run": 1}) + "\n" for s in (1, 2, 3, 4)))
    log = JsonlLog(str(path), 2)
    log.write({"step": 3, "run": 2})
    log.close()
    assert [(row["step"], row["run"]) for row in read(path)] == [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)
    log = JsonlLog(str(path), 2)
    log.write({"step": 2, "whole": True})
    log.close()
    assert read(path) == [{"step": 1}, {"step": 2, "whole": True}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonlLog(str(path), 0).close()
    assert path.read_text() == ""


def test_tensorboard_takes_finite_numbers_only(tmp_path):
    log = TensorBoardLog(str(tmp_path), 0)
    log.write({"step": 1, "a": 1.0, "nan": math.nan, "none": None, "list": [1.0]})
    log.close()
    assert any(tmp_path.iterdir())


def test_phases_add_up():
    timer = PhaseTimer()
    for phase in ("rollout", "update", "rollout"):
        with timer(phase):
            pass
    seconds = timer.metrics()
    assert set(seconds) == {"seconds/rollout", "seconds/update", "step_time"}
    assert seconds["step_time"] >= seconds["seconds/rollout"] + seconds["seconds/update"]
