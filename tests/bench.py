"""Seconds per step by phase, and each method's time over GRPO's, on the embedded model.

    python -m tests.bench [--steps=30] [--methods=grpo,ispo,dapo,erpo] [key=value overrides, e.g. rollout.num_prompts=64]

Runs the methods alternately with the same settings and prints medians over the steps after the first
three (which compile; later ones may, now and then). Machines differ and so do their moods: quote ratios of one run.
"""

import statistics
import sys
import tempfile

from tests.test_train import command, rows, run

ROUNDS = 2
SKIP = 3
METHODS = "grpo,ispo,dapo,erpo"
OPTIONS = ("--steps", "--methods")


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
    unknown = [a for a in argv if a.startswith("--") and a.split("=")[0] not in OPTIONS]
    if unknown:
        sys.exit(f"{', '.join(unknown)}: unknown; options are {', '.join(OPTIONS)}")
    overrides = [a for a in argv if not a.startswith("--")]
    for _ in range(ROUNDS):
        for method, collected in results.items():
            collected += measure(method, steps, overrides)
    everything = [row for collected in results.values() for row in collected]
    phases = [*dict.fromkeys(k for row in everything for k in row if k.startswith("seconds/"))]
    columns = [*phases, "step_time"]
    first = next(iter(results))
    print(f"median seconds per step, {len(results[first])} steps each, and the ratio to {first}")
    names = [*(p.removeprefix("seconds/") for p in phases), "step", "ratio", "prompts"]
    print(f"{'method':20s}" + "".join(f"{name:>9s}" for name in names))
    base = statistics.median(row["step_time"] for row in results[first])
    for method, collected in results.items():
        medians = [statistics.median(row.get(c, 0.0) for row in collected) for c in columns]
        # a method that draws again does so more often the better the policy is
        prompts = statistics.fmean(row["sampling/generated_prompts"] for row in collected)
        cells = [*medians, medians[-1] / base]
        print(f"{method:20s}" + "".join(f"{x:9.3f}" for x in cells) + f"{prompts:9.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
