"""Seconds per step by phase, and ISPO's overhead over GRPO, on the embedded model.

    python -m tests.bench [--steps=30] [key=value overrides, e.g. rollout.num_prompts=64]

Runs both recipes alternately with the same settings and prints medians over the steps after the first
three (which compile). Machines differ and so do their moods: quote ratios of one run.
"""

import statistics
import sys
import tempfile

from tests.test_train import command, rows, run

ROUNDS = 2
SKIP = 3


def measure(recipe: str, steps: int, overrides: list[str]) -> list[dict]:
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
        done = run(command("train", folder, *args, config=f"configs/{recipe}.py"))
        if done.returncode:
            sys.exit(done.stderr)
        return rows(folder)[SKIP:]


def main(argv: list[str]) -> None:
    steps = next((int(a.split("=")[1]) for a in argv if a.startswith("--steps=")), 30)
    overrides = [a for a in argv if not a.startswith("--")]
    results: dict[str, list[dict]] = {"grpo": [], "ispo": []}
    for _ in range(ROUNDS):
        for recipe, collected in results.items():
            collected += measure(recipe, steps, overrides)
    phases = [k for k in results["ispo"][0] if k.startswith("seconds/")] + ["step_time"]
    median = {
        recipe: {p: statistics.median(r[p] for r in collected) for p in phases}
        for recipe, collected in results.items()
    }
    print(f"median seconds per step, {len(results['ispo'])} steps each")
    for phase in phases:
        grpo, ispo = median["grpo"][phase], median["ispo"][phase]
        print(f"{phase.removeprefix('seconds/'):10s} grpo {grpo:7.4f}  ispo {ispo:7.4f}")
    print(f"ispo / grpo: {median['ispo']['step_time'] / median['grpo']['step_time']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
