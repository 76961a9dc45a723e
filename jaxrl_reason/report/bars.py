"""Accuracies with their intervals as one bar chart."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(path: str, metrics: dict[str, float], intervals: dict[str, tuple], title: str) -> None:
    """One bar per name of `metrics` (shares, 0 to 1) with its 95 % interval, written to a PNG."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.3 * len(metrics), 4.0), layout="constrained")
    for i, (name, value) in enumerate(metrics.items()):
        low, high = intervals[name]
        below, above = max(value - low, 0.0), max(high - value, 0.0)
        axis.bar(i, value, yerr=[[below], [above]], width=0.6, color=f"C{i}", capsize=5)
        # above the interval, so that neither hides the other
        axis.text(i, high + 0.02, f"{value:.3f}", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(range(len(metrics)), [name.replace("_", " ") for name in metrics])
    axis.set(ylabel="accuracy", ylim=(0, 1.12), title=title)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.title.set_fontsize(10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
