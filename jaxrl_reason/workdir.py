"""A run folder: its configuration, and the rule for continuing it with another one."""

import json
import os

# Sections and keys that may differ when a run is continued: none changes a result of the steps before
MAY_CHANGE = (
    "num_steps", "eval_every", "checkpoint", "log", "verifier", "mesh", "eval", "learner.chunk_tokens",
)  # fmt: skip


def write_json(path: str, value) -> None:
    """Write JSON atomically, making folders as needed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")
    os.replace(path + ".tmp", path)


def read_json(path: str):
    """Content of a JSON file."""
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def claim(workdir: str, main: str, config: dict, defaults: dict, write: bool = True) -> None:
    """Write config.json, or check it against that of the run which is there already.

    Keys that came after that run was started count with their `defaults`. Raises ValueError naming
    every key that differs and may not, with both values.
    """
    path = os.path.join(workdir, "config.json")
    new = json.loads(json.dumps(config))
    if os.path.exists(path):
        there = read_json(path)
        if there.get("main") != main:
            raise ValueError(f"{workdir} holds a run of {there.get('main')!r}, not {main!r}")
        old = overlay(json.loads(json.dumps(defaults)), there["config"])
        wrong = [
            f"{key}: the run has {a!r}, now {b!r}"
            for key, a, b in differences(old, new)
            if not _may_change(key, old)
        ]
        if wrong:
            raise ValueError(
                f"{workdir} holds another run; use a new --workdir, or undo:\n  "
                + "\n  ".join(wrong)
            )
    if write:
        write_json(path, {"main": main, "config": new})


def overlay(base: dict, over: dict) -> dict:
    """`base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        inner = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = overlay(base[key], value) if inner else value
    return merged


def differences(old, new, prefix: str = "") -> list[tuple]:
    """(key, old value, new value) of every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in sorted(old.keys() | new.keys())
            for d in differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [(prefix, old, new)]


def _may_change(key: str, old: dict) -> bool:
    # num_steps may have decided the rate of the steps done, or PREPO's choice of prompts
    if key == "num_steps":
        prepo = old.get("algorithm", {}).get("recipe") == "prepo"
        if old["optimizer"]["schedule"] != "constant" or prepo:
            return False
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)
