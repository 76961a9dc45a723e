"""A run folder: its configuration, and the rule for continuing it with another one."""

import json
import os

# Sections and keys that may differ when a run is continued: none changes a result of the steps before
MAY_CHANGE = ("num_steps", "checkpoint", "log", "verifier", "mesh", "eval", "learner.chunk_tokens")


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


def claim(workdir: str, main: str, config: dict, resuming: bool, write: bool = True) -> None:
    """Write config.json, or check it against the one of the run that is being continued.

    Raises ValueError naming every key that differs and may not, with both values.
    """
    path = os.path.join(workdir, "config.json")
    new = {"main": main, "config": json.loads(json.dumps(config))}
    if resuming and os.path.exists(path):
        old = read_json(path)
        wrong = [
            f"{key}: the run has {a!r}, now {b!r}"
            for key, a, b in differences(old, new)
            if not _may_change(key.removeprefix("config."), old["config"])
        ]
        if wrong:
            raise ValueError(
                f"{workdir} holds another run; use a new --workdir, or undo:\n  "
                + "\n  ".join(wrong)
            )
    if write:
        write_json(path, new)


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
    if key == "num_steps" and old["optimizer"]["schedule"] != "constant":
        return False  # the rate of the steps already done depends on it
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)
