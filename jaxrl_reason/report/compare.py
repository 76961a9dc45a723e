"""Runs of several methods and seeds as one Markdown table, mean ± standard deviation over seeds.

    python -m jaxrl_reason.report.compare runs/ispo-0 runs/ispo-1 runs/grpo-0 …

Runs count as one method when their configurations differ in the seed alone.
"""

import json
import os
import statistics
import sys

from jaxrl_reason.report.curve import read_rows
from jaxrl_reason.workdir import read_json

LAST = 10  # steps that "at the end" covers


def summary(folder: str) -> dict[str, float]:
    """The figures of one finished run."""
    before, after = (
        read_json(os.path.join(folder, "eval", f"{name}.json"))["metrics"]
        for name in ("before", "after")
    )
    rows = read_rows(os.path.join(folder, "metrics.jsonl"))
    planned = read_json(os.path.join(folder, "config.json"))["config"]["num_steps"]
    if rows[-1]["step"] != planned:
        raise ValueError(f"{folder}: {rows[-1]['step']} of {planned} steps are done")
    end = rows[-LAST:]

    def mean(chosen, name):
        values = [row[name] for row in chosen if row.get(name) is not None]
        return statistics.fmean(values) if values else float("nan")

    sampled = next((name for name in after if name.startswith("avg@")), None)
    figures = {
        "greedy before": before["greedy_pass@1"],
        "greedy after": after["greedy_pass@1"],
        "accuracy over the run": mean(rows, "accuracy"),
        "thinking before": rows[0]["thinking_rate"],
        "thinking at the end": mean(end, "thinking_rate"),
        "same-outcome groups": mean(rows, "zero_advantage/outcome"),
        "groups without gradient": mean(rows, "frac_reward_zero_std"),
        "seconds per step": statistics.median(row["step_time"] for row in rows),
    }
    if sampled:
        figures[f"{sampled} after"] = after[sampled]
    return figures


def method_of(folder: str) -> str:
    """What tells a run's method apart: its recipe and the values of its own sections, but the seed."""
    config = read_json(os.path.join(folder, "config.json"))["config"]
    return json.dumps(config | {"seed": None}, sort_keys=True)


def table(folders: list[str]) -> str:
    """Markdown table, a row a method; the row is named after its first folder, less a `-seed`."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(method_of(folder), []).append(folder)
    rows = {}
    for members in groups.values():
        name = os.path.basename(members[0].rstrip("/")).rpartition("-")[0]
        name = members[0] if not name or name in rows else name
        rows[name] = [summary(folder) for folder in members]
    columns = list(dict.fromkeys(c for seeds in rows.values() for s in seeds for c in s))
    lines = ["| run | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, seeds in rows.items():
        cells = [_cell([s[c] for s in seeds if c in s]) for c in columns]
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(table(sys.argv[1:]))
