"""Start the runs of a sweep one after another, and print their table.

    python -m jaxrl_reason.sweep --sweep=configs/sweeps/ispo_table2.py:part=a \\
        --workdir=runs/sweeps/table2a [--seeds=0,1,2] [--set key=value …] [--jobs=1] [--dry_run] [--table]

A sweep file has `get_sweep(arg)`: {block: {row: (config file with its argument, {dotted key: value})}}.
Settings that come to the same configuration are run once and stand in each of their rows. Every setting
is checked before the first run starts. A run lives in <workdir>/<row>-<seed>, with what it printed in
train.log; the same command again skips what is finished and continues what is not. A run that fails is
reported and the others go on; the exit status is then 1. The table, mean ± standard deviation over seeds,
is also in <workdir>/table.md, accuracy and thinking over the steps in curves.png; --table writes both from
what is finished and starts nothing.
"""

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time

from absl import app, flags

from jaxrl_reason import config as config_lib
from jaxrl_reason import setup, workdir
from jaxrl_reason.config import TrainConfig
from jaxrl_reason.report import compare, sweep_curves
from jaxrl_reason.report.curve import read_rows

TRAIN = [sys.executable, "-m", "jaxrl_reason.train"]
NAME = re.compile(r"[\w+][\w+=.,-]*")  # rows name folders
POLL_SECONDS = 0.2
LOG = "train.log"
LOG_LINES = 20  # of a failed run's log


@dataclasses.dataclass(frozen=True)
class Run:
    """One setting with one seed."""

    name: str  # its folder's, <row>-<seed>
    folder: str
    config: TrainConfig
    command: tuple[str, ...]


def load(spec: str, function: str):
    """What `function` of a Python file returns: `spec` is the file's path, or path:argument."""
    path, _, arg = spec.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    found = importlib.util.spec_from_file_location("_loaded", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f"{path}: it has no {function}")
    return getattr(module, function)(arg or None)


def resolve(spec: str, overrides: dict) -> TrainConfig:
    """The validated config of a config file with some values replaced. Raises ValueError by key."""
    raw = load(spec, "get_config").to_dict()
    for key, value in overrides.items():
        *sections, name = key.split(".")
        section = raw
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ValueError(f"{key}: unknown config key; {part!r} is no section")
        section[name] = value
    return config_lib.from_config_dict(TrainConfig, raw)


def parse_overrides(items: list[str]) -> dict:
    """`key=value` items as {dotted key: value}, each value read as the type that the key has."""
    overrides = {}
    for item in items:
        key, equals, text = item.partition("=")
        if key == "seed":
            raise ValueError(f"--set {item}: seeds are named by --seeds")
        if not equals or key in overrides:
            raise ValueError(f"--set {item}: expected key=value, each key once")
        known = dataclasses.asdict(TrainConfig())
        for part in key.split("."):
            known = known.get(part) if isinstance(known, dict) else None
        try:
            value = {"True": True, "False": False}[text] if isinstance(known, bool) else text
            value = type(known)(text) if type(known) in (int, float) else value
        except (KeyError, ValueError):
            raise ValueError(f"--set {item}: expected {type(known).__name__}") from None
        overrides[key] = value
    return overrides


def plan(sweep: dict, seeds: list[int], folder: str, more: dict) -> tuple[list[Run], dict]:
    """(the runs in order, {block: {row: its runs}}): every row with every seed, seed by seed.

    `more` are overrides on top of every setting's own. Raises ValueError naming the setting.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds: {seeds}: expected one or more, each once")
    runs: dict[TrainConfig, Run] = {}
    blocks = {title: {name: [] for name in rows} for title, rows in sweep.items()}
    for seed in seeds:
        for title, rows in sweep.items():
            seen = set()
            for name, (spec, own) in rows.items():
                new = make_run(name, spec, own | more | {"seed": seed}, folder)
                run = runs.setdefault(new.config, new)
                if run in seen:
                    raise ValueError(
                        f"setting {new.name!r} of {title!r} is the same as {run.name!r}"
                    )
                seen.add(run)
                blocks[title][name].append(run)
    names = [run.name for run in runs.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"setting {', '.join(twice)}: one name for several settings")
    return list(runs.values()), blocks


def make_run(setting: str, spec: str, overrides: dict, folder: str) -> Run:
    """The run of one setting and seed; ValueError naming the setting if it cannot be."""
    if not NAME.fullmatch(setting):
        raise ValueError(f"setting {setting!r}: a name has letters, digits and +=.,-_ only")
    try:
        config = resolve(spec, overrides)
    except ValueError as error:
        raise ValueError(f"setting {setting!r}: {error}") from None
    name = f"{setting}-{config.seed}"
    own = os.path.join(folder, name)
    values = [f"--config.{key}={value}" for key, value in overrides.items()]
    return Run(name, own, config, (*TRAIN, f"--config={spec}", *values, f"--workdir={own}"))


def check(runs: list[Run]) -> None:
    """Refuse folders that hold another run, with the sentence that `train` would refuse them with."""
    defaults = dataclasses.asdict(TrainConfig())
    for run in runs:
        workdir.claim(run.folder, "train", dataclasses.asdict(run.config), defaults, write=False)


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds all its steps and the evaluation after them."""
    try:
        there = workdir.read_json(os.path.join(run.folder, "config.json"))["config"]
        after = workdir.read_json(os.path.join(run.folder, "eval", "after.json"))
        last = read_rows(os.path.join(run.folder, "metrics.jsonl"))[-1]["step"]
    except (FileNotFoundError, IndexError, ValueError):  # ValueError: a line cut off by a kill
        return False
    there = config_lib.from_run(TrainConfig, there)
    steps = {there.num_steps, last, after.get("step")}
    saved = os.path.isdir(os.path.join(run.folder, "checkpoints", str(run.config.num_steps)))
    return saved and steps == {run.config.num_steps} and there.eval == run.config.eval


def run_all(runs: list[Run], jobs: int, lock: int) -> list[Run]:
    """Start the runs, `jobs` at a time; the failed ones, each reported with the end of its log.

    The runs inherit `lock`, so that they hold it also when this process is killed.
    """
    waiting, running, failed = list(runs), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = start(run, lock)
            time.sleep(POLL_SECONDS)
            for run, (process, began, offset) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                seconds = f"{time.monotonic() - began:.0f} s"
                if process.returncode == 0 and is_finished(run):
                    print(f"{run.name}: finished in {seconds}", flush=True)
                    continue
                failed.append(run)
                status = f"{run.name}: failed after {seconds}, exit status {process.returncode}"
                print(f"{status}; its log ends\n{tail(run, offset)}", file=sys.stderr, flush=True)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()
    return failed


def start(run: Run, lock: int) -> tuple[subprocess.Popen, float, int]:
    """(process of a run, when it began, where in its log it began)."""
    os.makedirs(run.folder, exist_ok=True)
    path = os.path.join(run.folder, LOG)
    print(f"{run.name}: started, log in {path}", flush=True)
    with open(path, "ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock]
        )
    return process, time.monotonic(), offset


def tail(run: Run, offset: int) -> str:
    """The last lines of a run's log, of those written after `offset`."""
    with open(os.path.join(run.folder, LOG), "rb") as f:
        f.seek(offset)
        lines = f.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])


def write_results(folder: str, title: str, blocks: dict) -> str:
    """The Markdown table of what is finished, a part a block; also table.md and curves.png in `folder`."""
    done = {
        block: {name: [r.folder for r in runs if is_finished(r)] for name, runs in rows.items()}
        for block, rows in blocks.items()
    }
    parts = [f"**{block}**\n\n{compare.table(rows)}" for block, rows in done.items()]
    text = "\n\n".join([title, *parts]) + "\n"
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as f:
        f.write(text)
    if any(folders for rows in done.values() for folders in rows.values()):
        sweep_curves.draw(os.path.join(folder, "curves.png"), done)
    return text


@contextlib.contextmanager
def locked(folder: str):
    """File descriptor of the folder's lock; ValueError while another sweep or a run of it holds it."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another sweep, or a run that one left, is at work"
            ) from None
        yield f.fileno()


def sweep(spec: str, folder: str, seeds, more, jobs: int, dry_run: bool, table: bool) -> list[Run]:
    """Do what the command line asks; the runs that failed."""
    if jobs < 1:
        raise ValueError(f"--jobs: {jobs}: expected 1 or more")
    runs, blocks = plan(load(spec, "get_sweep"), seeds, folder, parse_overrides(more))
    if dry_run:
        print("\n".join(shlex.join(run.command) for run in runs))
        return []
    check(runs)
    failed = []
    if not table:
        with locked(folder) as lock:
            todo = [run for run in runs if not is_finished(run)]
            for run in todo:
                setup.model_folder(run.config.model.path)  # raises for a start that is not there
            print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished", flush=True)
            failed = run_all(todo, jobs, lock)
    title = f"{spec}, seeds {', '.join(map(str, seeds))}" + "".join(f", {item}" for item in more)
    print(write_results(folder, title, blocks))
    return failed


def main(_):
    args = flags.FLAGS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended too
    try:
        if not all(seed.isdecimal() for seed in args.seeds):
            raise ValueError(f"--seeds: {args.seeds}: expected numbers from 0")
        seeds = [int(seed) for seed in args.seeds]
        failed = sweep(
            args.sweep, args.workdir, seeds, args.set, args.jobs, args.dry_run, args.table
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {len(failed)} runs failed: {', '.join(run.name for run in failed)}")


def run_from_command_line() -> None:
    """Define the flags and run."""
    flags.DEFINE_string("sweep", None, "Sweep file, e.g. configs/sweeps/ispo_table2.py:part=a.")
    flags.DEFINE_string("workdir", None, "Folder of the runs, table.md and curves.png.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every setting.")
    flags.DEFINE_multi_string("set", [], "key=value on top of every setting; may be repeated.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.")
    flags.DEFINE_bool("dry_run", False, "Print the commands and start nothing.")
    flags.DEFINE_bool("table", False, "Write the table of what is finished and start nothing.")
    flags.mark_flags_as_required(["sweep", "workdir"])
    app.run(main)


if __name__ == "__main__":
    run_from_command_line()
