"""Seconds per step by phase, and each method's time over GRPO's, on the embedded model.

    python -m tests.bench [--steps=30] [--methods=grpo,ispo,dapo,erpo] [key=value overrides, e.g. rollout.num_prompts=64]

Runs the methods alternately with the same settings and prints medians over the steps after the first
three (which compile). Machines differ and so do their moods: quote ratios of one run.
"""

import statistics
import sys
import tempfile

from tests.test_train import command, rows, run

ROUNDS = 2
SKIP = 3
METHODS = "grpo,ispo,dapo,erpo"


def measure(method: str, steps: int, overrides: list[str]) -> list[dict]:
    """Metric rows of one run, without those that compile."""
    with tempfile.TemporaryDirectory() as folder:
        args = [
            f"--config.num_steps={steps}",
            "--config.eval.num_problems=8",
            "--config.eval.num_generations=0",
            "--config.eval.batch_size=8",
            "--config.log.rollouts_every=0",
            "--config.checkpoint.every=1000",
            *(f"--config.{o}" for o in overrides),
        ]
        done = run(command("train", folder, *args, config=f"configs/{method}.py"))
        if done.returncode:
            sys.exit(done.stderr)
        return rows(folder)[SKIP:]


def option(argv: list[str], name: str, default: str) -> str:
    return next((a.split("=")[1] for a in argv if a.startswith(f"--{name}=")), default)


def main(argv: list[str]) -> None:
    steps = int(option(argv, "steps", "30"))
    results = {name: [] for name in option(argv, "methods", METHODS).split(",")}
    overrides = [a for a in argv if not a.startswith("--")]
    for _ in range(ROUNDS):
        for method, collected in results.items():
            collected += measure(method, steps, overrides)
    everything = [row for collected in results.values() for row in collected]
    phases = [*dict.fromkeys(k for row in everything for k in row if k.startswith("seconds/"))]
    median = {
        method: {
            p: statistics.median(r.get(p, 0.0) for r in collected) for p in [*phases, "step_time"]
        }
        for method, collected in results.items()
    }
    first = next(iter(results))
    print(f"median seconds per step, {len(results[first])} steps each, and the ratio to {first}")
    names = [p.removeprefix("seconds/") for p in phases]
    print(f"{'method':20s}" + "".join(f"{name:>9s}" for name in [*names, "step", "ratio"]))
    for method, values in median.items():
        cells = "".join(f"{values[p]:9.3f}" for p in [*phases, "step_time"])
        print(f"{method:20s}{cells}{values['step_time'] / median[first]['step_time']:9.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
