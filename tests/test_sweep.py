"""The runner of sweeps, with a stand-in for `train`, and what the sweep files hold."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrl_reason import sweep

ROOT = Path(__file__).resolve().parents[1]
TINY = "configs/ispo.py:model=tiny,task=arithmetic"

# Leaves what a finished run leaves. A file `kill`, `fail` or `wait` in the folder above makes the run
# named in it end the runner, fail, or wait until the file is gone.
FAKE_TRAIN = """
import json, os, signal, sys, time

folder = next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2]
above, name = os.path.split(folder)

def named(what):
    path = os.path.join(above, what)
    return os.path.exists(path) and open(path).read() == name

with open(os.path.join(above, "order"), "a") as f:
    f.write(name + "\\n")
if named("fail"):
    sys.exit("error: " + name + " cannot")
if named("kill"):
    os.kill(os.getppid(), signal.SIGKILL)
while named("wait"):
    time.sleep(0.01)
with open(os.path.join(above, "configs")) as f:
    config = json.load(f)[name]
os.makedirs(os.path.join(folder, "eval"), exist_ok=True)

def write(path, value):
    with open(os.path.join(folder, path), "w") as f:
        f.write(json.dumps(value) + "\\n")

steps, after = config["num_steps"], 0.5 + 0.1 * config["seed"]
write("config.json", {"main": "train", "config": config})
write("eval/before.json", {"step": 0, "metrics": {"greedy_pass@1": 0.25}})
write("metrics.jsonl", {"step": steps, "thinking_rate": 0.5, "step_time": 1.0})
os.makedirs(os.path.join(folder, "checkpoints", str(steps)), exist_ok=True)
write("eval/after.json", {"step": steps, "metrics": {"greedy_pass@1": after}})
"""

RUNNER = """
import sys
from jaxrl_reason import sweep
sweep.TRAIN = [sys.executable, {train!r}]
sweep.run_from_command_line()
"""

SWEEP = f"""
def get_sweep(arg=None):
    return {{
        "one": {{"ispo": ({TINY!r}, {{}}), "+ifd": ({TINY!r}, {{"ispo.lambda2": 0.0}})}},
        "two": {{"default": ({TINY!r}, {{"ispo.lambda2": 0.02}})}},
    }}
"""
NAMES = ["ispo-0", "+ifd-0", "ispo-1", "+ifd-1"]
SEEDS = [0, 1]


class Sweep:
    """A sweep file, a stand-in for `train` and a folder of runs."""

    def __init__(self, folder):
        self.file, self.train, self.folder = folder / "s.py", folder / "train.py", folder / "runs"
        self.file.write_text(SWEEP)
        self.train.write_text(FAKE_TRAIN)
        self.folder.mkdir()

    def order(self):
        return (self.folder / "order").read_text().split()

    def __call__(self, more=(), jobs=1, dry_run=False, table=False):
        """Names of the runs that failed; in this process."""
        self.prepare(more)
        failed = sweep.sweep(
            str(self.file), str(self.folder), SEEDS, list(more), jobs, dry_run, table
        )
        return [run.name for run in failed]

    def program(self, *args):
        """The finished process of the program."""
        self.prepare()
        runner = self.file.with_name("runner.py")
        runner.write_text(RUNNER.format(train=str(self.train)))
        command = [sys.executable, runner, f"--sweep={self.file}", f"--workdir={self.folder}"]
        return subprocess.run(
            [*command, f"--seeds={','.join(map(str, SEEDS))}", *args],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def prepare(self, more=()):
        data = sweep.load(str(self.file), "get_sweep")
        runs, _ = sweep.plan(data, SEEDS, "", sweep.parse_overrides(list(more)))
        configs = {run.name: dataclasses.asdict(run.config) for run in runs}
        (self.folder / "configs").write_text(json.dumps(configs))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = Sweep(tmp_path)
    monkeypatch.setattr(sweep, "TRAIN", [sys.executable, str(fake.train)])
    return fake


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_runs_go_in_order_and_finished_ones_are_skipped(fake, capsys):
    assert fake() == []
    assert fake.order() == NAMES  # `default` is `ispo`, which is run once
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    # mean 0.55, std √(2·0.05²/1) = 0.071
    assert lines[2].startswith("| ispo | 2 | 0.250 ± 0.000 | 0.550 ± 0.071 |")
    assert lines[3].startswith("| +ifd | 2 |")
    assert lines[-1].replace("default", "ispo") == lines[2]
    assert (fake.folder / "table.md").read_text() in printed
    assert (fake.folder / "curves.png").stat().st_size > 1000

    assert fake() == []
    assert "4 runs, 4 of them finished" in capsys.readouterr().out
    assert fake.order() == NAMES
    assert fake(["num_steps=61"]) == []  # a finished run may go on
    assert fake.order() == NAMES + NAMES


def test_a_killed_sweep_continues_where_it_stood(fake):
    (fake.folder / "kill").write_text("+ifd-0")
    (fake.folder / "wait").write_text("+ifd-0")
    assert fake.program().returncode == -signal.SIGKILL
    assert fake.order() == NAMES[:2]
    (fake.folder / "kill").unlink()
    with pytest.raises(ValueError, match="a run that one left, is at work"):
        fake()
    (fake.folder / "wait").unlink()
    failed = None
    while failed is None:
        with contextlib.suppress(ValueError):  # until the run that was left has ended
            failed = fake()
        time.sleep(0.01)
    assert failed == []
    assert fake.order() == NAMES


def test_a_run_cut_short_is_started_again(fake):
    fake()
    for name in ("+ifd-0", "ispo-1"):
        (fake.folder / name / "eval" / "after.json").unlink()
    (fake.folder / "+ifd-1" / "metrics.jsonl").write_text('{"step": 59}\n{"st')
    fake()
    assert fake.order() == NAMES + NAMES[1:]


def test_a_failed_run_is_reported_and_the_others_go_on(fake):
    (fake.folder / "fail").write_text("ispo-0")
    done = fake.program("--jobs=2")
    assert done.returncode == 1
    assert "ispo-0: failed" in done.stderr
    assert "error: ispo-0 cannot" in done.stderr
    assert "error: 1 runs failed: ispo-0" in done.stderr
    assert sorted(fake.order()) == sorted(NAMES)
    assert "| ispo | 1 | 0.250 | 0.600 |" in done.stdout
    assert "| +ifd | 2 |" in done.stdout

    (fake.folder / "fail").unlink()
    assert fake() == []
    assert fake.order()[4:] == ["ispo-0"]


def test_dry_run_and_table_start_nothing(fake, capsys):
    fake(["ispo.alpha=2"], dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == NAMES
    assert all("--config.ispo.alpha=2.0" in line for line in lines)
    assert "--config.ispo.lambda2=0.0" in lines[1]
    assert sorted(p.name for p in fake.folder.iterdir()) == ["configs"]
    fake(table=True)
    assert "| ispo | 0 |" in (fake.folder / "table.md").read_text()
    assert sorted(p.name for p in fake.folder.iterdir()) == ["configs", "table.md"]


def test_a_changed_sweep_is_refused_by_the_key_that_changed(fake):
    fake()
    fake.file.write_text(SWEEP.replace("0.0}", "0.05}"))
    for table in (False, True):
        with pytest.raises(ValueError) as error:
            fake(table=table)
        assert "+ifd-0 holds another run" in str(error.value)
        assert "ispo.lambda2: the run has 0.0, now 0.05" in str(error.value)
    assert fake.order() == NAMES


def settings(**rows):
    return {"block": {name: (TINY, overrides) for name, overrides in rows.items()}}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (settings(a={"ispo.lamda1": 1.0}), "setting 'a': ispo.lamda1: unknown config key"),
        (settings(a={"seed.x": 1}), "setting 'a': seed.x: unknown config key"),
        (settings(a={"ispo.critical": "all"}), "setting 'a': ispo.critical: 'all' is not allowed"),
        (settings(a={"ispo.lambda1": "1"}), "setting 'a': ispo.lambda1: '1' is of type str"),
        (settings(a={}, b={"ispo.lambda1": 0.1}), "setting 'b-0' of 'block' is the same as 'a-0'"),
        (settings(a={}) | {"more": {"a": (TINY, {"ispo.beta": 0.0})}}, "a-0: one name for several"),
        (settings(**{"a/b": {}}), "setting 'a/b': a name has"),
        ({"block": {"a": ("configs/none.py", {})}}, "setting 'a': configs/none.py: no such file"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(data, named):
    with pytest.raises(ValueError) as error:
        sweep.plan(data, [0], "runs", {})
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ("ispo.lambda1", "expected key=value"),
        ("num_steps=many", "expected int"),
        ("ispo.symmetric=1", "expected bool"),
    ],
)
def test_bad_overrides_are_refused(item, named):
    with pytest.raises(ValueError, match=named):
        sweep.parse_overrides([item])


def test_overrides_have_the_type_of_their_key():
    items = ["num_steps=3", "ispo.lambda1=1", "ispo.symmetric=True", "algorithm.std_floor=0"]
    assert sweep.parse_overrides(items) == {
        "num_steps": 3, "ispo.lambda1": 1.0, "ispo.symmetric": True, "algorithm.std_floor": "0",
    }  # fmt: skip


def planned(name, arg="", seeds=(0,)):
    """(runs by name, rows by block) of a sweep file."""
    data = sweep.load(f"configs/sweeps/{name}.py:{arg}", "get_sweep")
    runs, blocks = sweep.plan(data, list(seeds), "runs", {})
    return {run.name: run.config for run in runs}, {k: list(v) for k, v in blocks.items()}


def test_table_2_has_the_papers_rows():
    runs, blocks = planned("ispo_table2")
    assert list(blocks.values()) == [
        ["grpo", "+ifd", "+token", "ispo"],
        ["entropy", "drift", "union", "ispo"],
        ["symmetric", "beta=0", "ispo"],
    ]
    assert len(runs) == 9  # ISPO once
    assert runs["grpo-0"].algorithm.recipe == "grpo"
    assert (runs["+ifd-0"].ispo.lambda2, runs["+token-0"].ispo.lambda1) == (0, 0)
    assert runs["symmetric-0"].ispo.symmetric
    assert runs["beta=0-0"].ispo.beta == 0
    runs, blocks = planned("ispo_table2", "part=b", seeds=(0, 1))
    assert len(blocks) == 1
    assert len(runs) == 8
    with pytest.raises(ValueError, match="part='d'"):
        planned("ispo_table2", "part=d")
    with pytest.raises(ValueError, match="'prt=a'.*model.*task.*part"):
        planned("ispo_table2", "prt=a")


def test_table_7_has_the_papers_rows_around_one_default():
    runs, blocks = planned("ispo_table7", "model=some/folder")
    assert len(runs) == 18
    assert [len(rows) for rows in blocks.values()] == [1, 5, 4, 4, 3, 3, 4]
    assert list(blocks.values())[1] == [f"lambda1={x}" for x in ("0", "0.1", "0.5", "1", "2")]
    assert list(blocks.values())[2] == [f"lambda2={x}" for x in ("0", "0.05", "0.1", "0.3")]
    assert runs["alpha=1,beta=2-0"].ispo.beta == 2
    assert runs["default-0"].ispo.lambda1 == 0.5
    assert runs["default-0"].model.path == "some/folder"
    runs, _ = planned("ispo_table7")  # the embedded model: multiples of its λ1 = 0.1, λ2 = 0.02
    assert sorted({config.ispo.lambda1 for config in runs.values()}) == [0, 0.02, 0.1, 0.2, 0.4]
    assert sorted({config.ispo.lambda2 for config in runs.values()}) == [0, 0.01, 0.02, 0.06]


def test_erpo_ablations():
    runs, blocks = planned("erpo_ablations")
    assert blocks["parts"] == ["erpo", "eta=0", "gamma=0", "num_buckets=1", "grpo"]
    assert runs["erpo-0"].algorithm.recipe == "erpo"
    assert runs["grpo-0"].algorithm.recipe == "grpo"
    assert runs["grpo-0"].algorithm.loss_type == runs["erpo-0"].algorithm.loss_type
    assert (runs["eta=0-0"].erpo.eta, runs["gamma=0-0"].erpo.gamma) == (0, 0)
    assert runs["num_buckets=1-0"].erpo.num_buckets == 1


def test_std_floor_crosses_form_weight_and_start():
    runs, blocks = planned("std_floor", "starts=here")
    assert len(runs) == 20  # 3 forms x 3 weights x 2 starts, and GRPO from each
    assert list(blocks) == ["start: direct", "start: think"]
    forms = {"literal": ("0", "std"), "floor": ("outcome", "std"), "no_std": ("0", "none")}
    for start, stage in (("direct", "early_direct"), ("think", "early_think")):
        for form, expected in forms.items():
            for weight in (0.02, 0.1, 0.5):
                config = runs[f"{start}-{form}-{weight}-0"]
                assert config.model.path == f"here/{stage}/export"
                assert (config.algorithm.std_floor, config.algorithm.scale_rewards) == expected
                assert config.ispo.lambda1 == weight
                assert config.ispo.lambda2 == pytest.approx(weight / 5)
                assert config.num_steps == runs[f"{start}-grpo-0"].num_steps
    with pytest.raises(ValueError, match="model=other"):
        planned("std_floor", "model=other")


def test_a_start_that_is_not_there_is_refused(tmp_path):
    spec = f"configs/sweeps/std_floor.py:starts={tmp_path}/none"
    with pytest.raises(FileNotFoundError, match="none/early_direct/export"):
        sweep.sweep(spec, str(tmp_path / "runs"), [0], [], 1, False, False)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".lock"]
