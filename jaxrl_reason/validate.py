"""Refusals of config values: each names the key, what was found and what is allowed."""

import math
import types


def require(key, value, ok, allowed):
    """Refuse a value: an error with the key, what was found and what is allowed."""
    if not ok:
        raise ValueError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def one_of(key, value, choices):
    """Refuse a value that is none of the choices."""
    require(key, value, value in choices, ", ".join(map(repr, choices)))


def check_seed(seed):
    """Seeds are what jax.random.key takes."""
    require("seed", seed, 0 <= seed < 2**31, "0 to 2**31 - 1")


def at_least(prefix, section, **lows):
    """Refuse fields of a section under their lowest values."""
    for name, low in lows.items():
        value = getattr(section, name)
        require(f"{prefix}.{name}".lstrip("."), value, value >= low, f">= {low}")


def typed(key, value, kind):
    """The value as a config key of type `kind` holds it; whole numbers are fine as floats."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = isinstance(value, bool) and kind is not bool
    if wrong or not isinstance(value, kind):
        name = kind if isinstance(kind, types.UnionType) else kind.__name__
        raise ValueError(f"{key}: {value!r} is of type {type(value).__name__}, expected {name}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{key}: {value} is not allowed; allowed: finite numbers")
    return value
