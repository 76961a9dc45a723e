"""The package is a house of floors: a file imports from lower floors, or from its own package, only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxrl_reason"

# Every file, or the package it lies in. Nothing on floor 4 sees a model: rewards, advantages and
# objectives are pure functions of arrays and import floor 0 alone.
FLOORS = {
    "types": 0,
    "masked": 0,
    "mesh": 0,
    "model": 2,
    "data": 2,
    "verify": 2,
    "rollout": 3,
    "signals": 3,
    "rewards": 4,
    "advantages": 4,
    "objectives": 4,
    "selection": 4,
    "recipes": 5,
    "sections": 5,
    "method_sections": 5,
    "config": 6,
    "diagnostics": 6,
    "generation": 6,
    "learner": 6,
    "checkpoint": 6,
    "metrics": 6,
    "workdir": 0,
    "validate": 0,
    "report": 6,
    "setup": 7,
    "experience": 7,
    "evaluation": 7,
    "training": 8,
    "policy_of_run": 8,
    "train": 9,
    "sft": 9,
    "sweep": 9,
    "evaluate": 9,
    "export": 9,
    "lorenz": 9,
    "perturb": 9,
    "assets": 9,
    "plan": 9,
    "collapse": 9,
    "embedded": 9,
}
PURE = 4

FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(file: Path) -> str:
    """First part of a file's dotted name below the package; "" for the package itself."""
    part = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return "" if part == "__init__" else part


def imports_of(source: str) -> set[str]:
    """Units of this package that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = [name.split(".") for name in names if name.split(".")[0] == PACKAGE.name]
    return {parts[1] if len(parts) > 1 else "" for parts in inside}


def faults(unit: str, imported: set[str]) -> list[str]:
    floor = FLOORS[unit]
    out = []
    for other in sorted(imported - {unit, ""}):
        if FLOORS[other] >= floor:
            out.append(f"{unit} (floor {floor}) imports {other} (floor {FLOORS[other]})")
        elif floor == PURE and FLOORS[other] != 0:
            out.append(f"{unit} (floor {floor}) imports {other}, which is not on floor 0")
    return out


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_a_file_imports_from_lower_floors_only(file):
    unit = unit_of(file)
    imported = imports_of(file.read_text(encoding="utf-8"))
    if not unit:
        assert not imported, "the package itself imports nothing"
        return
    assert unit in FLOORS, f"{file.name} has no floor in this test's table"
    assert imported - {""} <= FLOORS.keys()
    assert not faults(unit, imported)


def test_the_check_sees_what_it_should():
    source = (
        "import jaxrl_reason.model.hf\n"
        "from jaxrl_reason import masked, train as t\n"
        "def f():\n    from jaxrl_reason.recipes import RECIPES\n"
    )
    assert imports_of(source) == {"model", "masked", "train", "recipes"}
    assert faults("rewards", {"rewards", "masked"}) == []
    assert len(faults("rewards", {"model", "recipes", "advantages"})) == 3
    assert len(faults("learner", {"diagnostics", "model"})) == 1
