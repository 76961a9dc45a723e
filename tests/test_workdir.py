import dataclasses
import json

import pytest

from jaxrl_reason import workdir
from jaxrl_reason.config import OptimizerSection, SftConfig, TrainConfig


def as_dict(**changes):
    return dataclasses.asdict(dataclasses.replace(TrainConfig(), **changes))


@pytest.fixture
def run(tmp_path):
    folder = str(tmp_path / "run")
    workdir.claim(folder, "train", as_dict(), as_dict())
    return folder


def test_the_resolved_config_is_written(run):
    assert workdir.read_json(run + "/config.json") == {"main": "train", "config": as_dict()}


def test_the_same_config_continues(run):
    workdir.claim(run, "train", as_dict(), as_dict())
    assert workdir.read_json(run + "/config.json") == {"main": "train", "config": as_dict()}


def test_a_changed_key_is_refused_by_name_with_both_values(run):
    other = as_dict(seed=7, optimizer=OptimizerSection(learning_rate=3e-5))
    with pytest.raises(ValueError) as error:
        workdir.claim(run, "train", other, as_dict())
    assert "seed: the run has 0, now 7" in str(error.value)
    assert "optimizer.learning_rate: the run has 1e-06, now 3e-05" in str(error.value)
    assert workdir.read_json(run + "/config.json")["config"] == as_dict()  # not overwritten


def test_another_main_is_refused(run):
    with pytest.raises(ValueError, match="holds a run of 'train', not 'sft'"):
        workdir.claim(run, "sft", dataclasses.asdict(SftConfig()), as_dict())


def test_a_key_that_came_later_is_refused_by_name(run):
    with pytest.raises(ValueError, match="rollout.new: the run has None, now 1"):
        other = as_dict()
        other["rollout"]["new"] = 1
        workdir.claim(run, "train", other, as_dict())


def test_a_key_that_came_later_has_its_default_in_the_older_run(run):
    new = as_dict()
    new["rollout"]["new"] = 1
    workdir.claim(run, "train", new, defaults=new)
    assert workdir.read_json(run + "/config.json")["config"]["rollout"]["new"] == 1


@pytest.mark.parametrize(
    "key", ["num_steps", "checkpoint.every", "log.tensorboard", "verifier.num_workers",
            "mesh.fsdp", "eval_every", "learner.chunk_tokens"],
)  # fmt: skip
def test_what_changes_no_step_may_change(run, key):
    other = as_dict()
    *path, last = key.split(".")
    (other[path[0]] if path else other)[last] = 3
    workdir.claim(run, "train", other, as_dict())
    assert workdir.read_json(run + "/config.json")["config"] == other


def test_micro_batches_may_not(run):
    other = as_dict()
    other["learner"]["micro_batch_size"] = 32
    with pytest.raises(ValueError, match="learner.micro_batch_size"):
        workdir.claim(run, "train", other, as_dict())


def test_more_steps_are_refused_where_the_rate_depends_on_them(tmp_path):
    folder = str(tmp_path)
    cosine = OptimizerSection(schedule="cosine")
    workdir.claim(folder, "train", as_dict(optimizer=cosine), as_dict())
    with pytest.raises(ValueError, match="num_steps: the run has 100, now 200"):
        workdir.claim(folder, "train", as_dict(optimizer=cosine, num_steps=200), as_dict())


def test_other_processes_check_and_do_not_write(run, tmp_path):
    workdir.claim(run, "train", as_dict(num_steps=200), as_dict(), write=False)
    assert workdir.read_json(run + "/config.json")["config"]["num_steps"] == 100
    with pytest.raises(ValueError, match="seed"):
        workdir.claim(run, "train", as_dict(seed=1), as_dict(), write=False)


def test_differences():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert workdir.differences(old, new) == [("b.c", 2, 4), ("b.d", 3, None), ("b.e", None, 5)]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.json"
    workdir.write_json(str(path), {"ü": 1})
    with pytest.raises(TypeError):
        workdir.write_json(str(path), {"ü": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 1}
