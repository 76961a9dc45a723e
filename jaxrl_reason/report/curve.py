"""The learning curve of a run as one PNG."""

import json
import os

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 5  # steps of the running mean


def read_rows(path: str) -> list[dict]:
    """Rows of a JSONL file."""
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def draw(workdir: str) -> str:
    """Draw accuracy, group outcomes, thinking and length over steps; returns the picture's path."""
    rows = read_rows(os.path.join(workdir, "metrics.jsonl"))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    _line(left, rows, "accuracy", "sampled rollouts (training)")
    _evaluations(left, workdir)
    left.set(title="Accuracy", ylim=(0, 1.02))
    _line(middle, rows, "zero_advantage/all_wrong", "all wrong")
    _line(middle, rows, "zero_advantage/all_correct", "all correct")
    _line(middle, rows, "zero_advantage/gradient", "without gradient")
    _line(middle, rows, "thinking_rate", "thinking rollouts")
    middle.set(title="Share of groups, of rollouts", ylim=(0, 1.02))
    _line(right, rows, "completions/mean_length", "mean length (tokens)")
    entropy = right.twinx()
    _line(entropy, rows, "entropy", "entropy (nats, right axis)", color="C3")
    right.set(title="Length and entropy")
    for axis in (left, middle, right):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        handles, labels = axis.get_legend_handles_labels()
        if axis is right:
            more = entropy.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
        axis.legend(handles, labels, fontsize=8, loc="center right" if axis is right else "best")
    path = os.path.join(workdir, "learning_curve.png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _line(axis, rows, name, label, color=None):
    """A thin line of the values and a thick one of their running mean."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    steps, values = map(np.asarray, zip(*points, strict=True))
    (thin,) = axis.plot(steps, values, alpha=0.3, color=color, linewidth=0.8)
    window = min(SMOOTHING, len(values))
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, label=label, color=thin.get_color())


def _evaluations(axis, workdir):
    folder = os.path.join(workdir, "eval")
    points = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                result = json.load(f)
            if "step" in result:
                low, high = result["intervals"]["greedy_pass@1"]
                points.append((result["step"], result["metrics"]["greedy_pass@1"], low, high))
    if points:
        steps, values, low, high = map(np.asarray, zip(*sorted(set(points)), strict=True))
        bars = np.maximum([values - low, high - values], 0)
        axis.errorbar(steps, values, bars, fmt="ko", capsize=3, label="greedy, held out (95 %)")
