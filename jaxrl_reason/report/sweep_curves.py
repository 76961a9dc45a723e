"""The runs of a sweep side by side: accuracy and thinking over steps, a line a setting."""

import os

import matplotlib
import numpy as np

from jaxrl_reason.report.curve import read_rows

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 5  # steps of the running mean
SHOWN = {"accuracy": "accuracy of sampled rollouts", "thinking_rate": "share that thinks"}
STYLES = ("-", "--", ":", "-.")


def draw(path: str, blocks: dict[str, dict[str, list[str]]]) -> None:
    """{block: {setting: run folders, one a seed}} as a PNG: a row of panels a block, bands of ± σ.

    Settings without a run are left out; runs of different lengths are drawn as far as all go.
    """
    figure, axes = plt.subplots(
        len(blocks),
        len(SHOWN),
        figsize=(12, 3.6 * len(blocks)),
        layout="constrained",
        squeeze=False,
    )
    for row, (title, settings) in zip(axes, blocks.items(), strict=True):
        for axis, (metric, label) in zip(row, SHOWN.items(), strict=True):
            for i, (name, folders) in enumerate(settings.items()):
                if folders:
                    # colour and style together tell forty lines apart
                    style = {"color": f"C{i % 10}", "linestyle": STYLES[i // 10 % len(STYLES)]}
                    _line(axis, folders, metric, name, style)
            axis.set(title=f"{title}: {label}", xlabel="step", ylim=(-0.02, 1.02))
            axis.grid(alpha=0.3)
        row[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis, folders, metric, name, style):
    curves = [_smoothed(folder, metric) for folder in folders]
    length = min(map(len, curves))
    values = np.array([curve[:length] for curve in curves])
    steps = np.arange(1, length + 1)
    mean = values.mean(axis=0)
    axis.plot(steps, mean, label=name, **style)
    if len(curves) > 1:
        spread = values.std(axis=0, ddof=1)
        axis.fill_between(steps, mean - spread, mean + spread, color=style["color"], alpha=0.15)


def _smoothed(folder: str, metric: str) -> list[float]:
    """Mean of what the last SMOOTHING steps have of a metric; NaN where they have nothing."""
    rows = read_rows(os.path.join(folder, "metrics.jsonl"))
    means = []
    for i in range(len(rows)):
        last = [row.get(metric) for row in rows[max(0, i - SMOOTHING + 1) : i + 1]]
        there = [value for value in last if value is not None]
        means.append(sum(there) / len(there) if there else np.nan)
    return means
