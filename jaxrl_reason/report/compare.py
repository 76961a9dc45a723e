"""Runs of several methods and seeds as one Markdown table, mean ± standard deviation over seeds.

    python -m jaxrl_reason.report.compare runs/ispo-0 runs/ispo-1 runs/grpo-0 …

Runs count as one method when their configurations differ in the seed alone.
"""

import json
import math
import os
import statistics
import sys

from jaxrl_reason.report.curve import read_rows
from jaxrl_reason.workdir import read_json

LAST = 10  # steps that "at the end" covers


def summary(folder: str) -> dict[str, float]:
    """The figures of one finished run; what its log does not have is left out."""
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
    # older runs have the fraction of flat rewards alone, which for their methods is the same
    no_gradient = (
        "zero_advantage/gradient"
        if "zero_advantage/gradient" in rows[0]
        else "frac_reward_zero_std"
    )
    figures = {
        "greedy before": before["greedy_pass@1"],
        "greedy after": after["greedy_pass@1"],
        "accuracy over the run": mean(rows, "accuracy"),
        "thinking before": mean(rows[:1], "thinking_rate"),
        "thinking at the end": mean(end, "thinking_rate"),
        "entropy at the end": mean(end, "entropy"),
        "length at the end": mean(end, "completions/mean_length"),
        "same-outcome groups": mean(rows, "zero_advantage/outcome"),
        "groups without gradient": mean(rows, no_gradient),
        "sampled groups trained on": share_kept(rows),
        "seconds per step": statistics.median(row["step_time"] for row in rows),
    }
    if sampled:
        figures[f"{sampled} after"] = after[sampled]
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def share_kept(rows: list[dict]) -> float:
    """Groups that were trained on over groups that were sampled; NaN in runs that did not count them."""
    generated = sum(row.get("sampling/generated_prompts", 0) for row in rows)
    kept = sum(row.get("sampling/kept_prompts", 0) for row in rows)
    return kept / generated if generated else float("nan")


def method_of(folder: str) -> str:
    """What tells a run's method apart: its recipe and the values of its own sections, but the seed."""
    config = read_json(os.path.join(folder, "config.json"))["config"]
    return json.dumps(config | {"seed": None}, sort_keys=True)


def by_method(folders: list[str]) -> dict[str, list[str]]:
    """Folders by method; a method is named after its first folder, less a `-seed`."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(method_of(folder), []).append(folder)
    named = {}
    for members in groups.values():
        name = os.path.basename(members[0].rstrip("/")).rpartition("-")[0]
        named[members[0] if not name or name in named else name] = members
    return named


def table(folders: list[str] | dict[str, list[str]]) -> str:
    """Markdown table, a row a method. A dictionary gives the rows' names, in order, and their folders."""
    named = folders if isinstance(folders, dict) else by_method(folders)
    rows = {name: [summary(folder) for folder in members] for name, members in named.items()}
    columns = list(dict.fromkeys(c for seeds in rows.values() for s in seeds for c in s))
    lines = ["| run | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, seeds in rows.items():
        cells = [_cell([s[c] for s in seeds if c in s]) for c in columns]
        lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Mean ± standard deviation (ddof 1); one value alone, a dash for none."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(table(sys.argv[1:]))
