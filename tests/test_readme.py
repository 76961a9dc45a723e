"""The README's chapter on adding a method, done to a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.test_train import SMALL, rows

ROOT = Path(__file__).resolve().parents[1]


def blocks(title: str) -> dict[str, str]:
    """Path -> code of the Python blocks of one chapter; each begins with its path as a comment."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    chapter = re.search(rf"^## {title}$(.*?)^## ", text, re.M | re.S).group(1)
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", chapter, re.S)
    assert len(found) == 4, "a test, a function, an entry, a config"
    return dict(found)


def test_the_worked_example_trains(tmp_path):
    for name in ("jaxrl_reason", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in blocks("Add a method").items():
        target = tmp_path / path
        if target.exists():  # the table of recipes: an import, and a line at its beginning
            assert path == "jaxrl_reason/recipes.py"
            imported, entry = code.split("\n\nRECIPES = {\n")
            before = target.read_text(encoding="utf-8")
            after = before.replace("\nRECIPES = {\n", f"\n{imported}\n\nRECIPES = {{\n{entry[:-2]}")
            assert before != after
            target.write_text(after, encoding="utf-8")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code, encoding="utf-8")

    def run(*args):
        done = subprocess.run(
            [sys.executable, "-m", *args], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert "2 passed" in run(
        "pytest", "-q", "-p", "no:cacheprovider", "tests/advantages/test_focal.py"
    )
    folder = tmp_path / "runs" / "focal"
    run(
        "jaxrl_reason.train", "--config=configs/focal.py:model=tiny,task=arithmetic",
        f"--workdir={folder}", *SMALL, "--config.num_steps=1",
    )  # fmt: skip
    (row,) = rows(folder)
    assert row["grad_norm"] > 0
    # a solved group has weight 0, a failed one advantage 0: what is left is the mixed groups
    assert 0 < row["useful_rollouts"] < 1
