"""Where to perturb a response, and with what (ERPO's study, Fig. 1b): pure functions of host arrays."""

import math
import zlib
from collections.abc import Collection, Sequence
from fractions import Fraction

import numpy as np

KINDS = ("high_entropy", "low_entropy")


def extreme_positions(
    entropy: Sequence[float], fraction: float, kind: str, max_positions: int
) -> list[int]:
    """Positions of the ⌈fraction·n⌉ largest (`high_entropy`) or smallest of n entropies, by rank.

    At least one where there is any; ties to the earlier position; at most `max_positions`, the most
    extreme ones. ⌈·⌉ is of the decimal fraction: 0.05 of 20 is 1.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {KINDS}")
    entropy = np.asarray(entropy, np.float64)
    count = math.ceil(Fraction(str(fraction)) * len(entropy))
    order = np.argsort(-entropy if kind == "high_entropy" else entropy, kind="stable")
    return order[: min(count, max_positions)].tolist()


def replacement_token(
    original: int, allowed: Collection[int], seed: int, problem_id: str, position: int
) -> int:
    """A token drawn uniformly from `allowed` without `original`, from (seed, problem, position) alone.

    Raises ValueError when nothing else is allowed.
    """
    others = np.asarray([token for token in allowed if token != original])
    if not len(others):
        raise ValueError(f"replacement: no allowed token besides {original}")
    rng = np.random.default_rng([seed, zlib.crc32(problem_id.encode()), position])
    return int(rng.choice(others))
