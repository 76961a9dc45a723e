"""Lorenz curves: how much of a total its largest values carry (ISPO, arXiv:2606.08815, Fig. 2b)."""

import math
from fractions import Fraction

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOP_FRACTIONS = (0.05, 0.1, 0.2)
# where a written curve is read off: per cents, and finer near 0, where it may be steep
PERCENTILES = np.union1d(np.linspace(0.0, 1.0, 101), np.geomspace(1e-4, 1.0, 161))


def lorenz_curve(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share of the values, share of their sum that these carry), the largest first, [N+1] from 0 to 1.

    Equal values give the diagonal, a single non-zero one a step at 1/N. Raises ValueError unless all
    are finite and non-negative and one is above 0.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())[::-1]
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("values: a Lorenz curve is of finite numbers from 0 on")
    if not values.any():
        raise ValueError(f"values: none of {len(values)} is above 0")
    carried = np.concatenate([[0.0], np.cumsum(values)])
    return np.linspace(0.0, 1.0, len(carried)), carried / carried[-1]


def top_share(values: np.ndarray, fraction: float) -> float:
    """Share of the sum that the ⌈fraction·N⌉ largest values carry."""
    count = math.ceil(Fraction(str(fraction)) * np.size(values))
    return float(lorenz_curve(values)[1][count])


def gini(values: np.ndarray) -> float:
    """Gini coefficient: twice the area between curve and diagonal, 0 (equal) to 1 − 1/N (one has all)."""
    return float(2.0 * np.trapezoid(*lorenz_curve(values)[::-1]) - 1.0)


def summarise(values: np.ndarray) -> dict:
    """Numbers of a curve, and the curve itself at `PERCENTILES`."""
    tokens, carried = lorenz_curve(values)
    return {
        "count": int(np.size(values)),
        "gini": gini(values),
        "top": {str(fraction): top_share(values, fraction) for fraction in TOP_FRACTIONS},
        "curve": {
            "share_of_tokens": PERCENTILES.tolist(),
            "share_of_norm": np.interp(PERCENTILES, tokens, carried).tolist(),
        },
    }


def set_shares(values: np.ndarray, sets: dict[str, np.ndarray]) -> dict[str, dict]:
    """Of each set: its share of the values, of their sum, and what as many of the largest would carry."""
    tokens, carried = lorenz_curve(values)
    total = float(np.sum(values, dtype=np.float64))
    out = {}
    for name, chosen in sets.items():
        size = float(np.mean(chosen))
        out[name] = {
            "share_of_tokens": size,
            "share_of_norm": float(np.sum(values[chosen], dtype=np.float64)) / total,
            "largest": float(np.interp(size, tokens, carried)),
        }
    return out


def draw(path: str, curves: dict[str, dict], sets: dict[str, dict], title: str) -> None:
    """Draw curves of `summarise` by their labels, and the non-empty sets of `set_shares` as points.

    Twice in one PNG: as the paper does, and with a logarithmic axis, where a steep start is seen.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for axis in (left, right):
        axis.plot(100 * PERCENTILES, 100 * PERCENTILES, color="0.6", linewidth=1, label="uniform")
        for (label, summary), style in zip(curves.items(), ("-", "--"), strict=False):
            x, y = (100 * np.asarray(values) for values in summary["curve"].values())
            axis.plot(x, y, style, color="C0", label=label)
        there = {name: share for name, share in sets.items() if share["share_of_tokens"]}
        for i, (name, share) in enumerate(there.items(), 1):
            x, y = 100 * share["share_of_tokens"], 100 * share["share_of_norm"]
            label = f"{name}: {x:.1f} % of tokens, {y:.1f} % of norm"
            axis.plot(x, y, "osD^"[i % 4], color=f"C{i}", label=label, zorder=3)
        axis.set(xlabel="tokens by gradient norm, largest first (%)", ylim=(-2, 102))
        axis.grid(alpha=0.3)
    left.set(ylabel="cumulative share of gradient norm (%)", xlim=(-2, 102))
    left.legend(fontsize=8, loc="lower right")
    right.set(xscale="log", xlim=(0.01, 100))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
