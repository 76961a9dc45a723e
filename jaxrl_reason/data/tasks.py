"""Problem sources: JSONL files, Hugging Face datasets, and the procedural tasks.

A source is a sequence: `len(source)` and `source[i] -> Problem`, the same problem for the same i for
ever. Procedural problems are split into training and held-out ones by a hash of their text, so a
held-out problem can never have been trained on, whatever the seed.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

PROCEDURAL = ("arithmetic", "countdown")
SPLITS = ("train", "test")
HELD_OUT_SHARE = 8  # one text in eight belongs to the test split
PROCEDURAL_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `kind` names its verifier; `solution` is a reference response, "" when unknown.

    `hints` help with it, from the weakest to the strongest.
    """

    id: str
    problem: str
    answer: str
    kind: str = "math"
    solution: str = ""
    hints: tuple[str, ...] = ()


def load_source(name: str, *, split: str, seed: int = 0, direct_fraction: float = 0.0) -> Sequence:
    """Source by name: `arithmetic`, `countdown`, `hf:dataset[:subset]`, or the path of a .jsonl file.

    `split` selects the training or held-out half of a procedural task and the split of a hub dataset;
    a JSONL file is used whole. `direct_fraction` is the share of arithmetic solutions that answer
    without steps. Raises ValueError or FileNotFoundError naming `name` and what is allowed.
    """
    if name in PROCEDURAL:
        if split not in SPLITS:
            raise ValueError(f"split: {split!r} is not one of {SPLITS}")
        if name == "arithmetic":
            return Arithmetic(split, seed, direct_fraction)
        return Countdown(split, seed)
    if name.startswith("hf:"):
        return load_hub(name[3:], split)
    if name.endswith(".jsonl"):
        return load_jsonl(name)
    raise ValueError(
        f"data source {name!r} is none of {', '.join(PROCEDURAL)}, hf:dataset[:subset], *.jsonl"
    )


def evaluation_problems(section) -> list[Problem]:
    """The problems of a config's eval section: the first `num_problems`, all for 0."""
    if section.source in PROCEDURAL and not section.num_problems:
        raise ValueError("eval.num_problems: 0 (all) is not possible for a procedural source")
    source = load_source(section.source, split=section.split)
    return [source[i] for i in range(min(section.num_problems or len(source), len(source)))]


def load_jsonl(path: str) -> list[Problem]:
    """Problems of a file with one {"id", "problem", "answer"} object a line; `solution` and `hints` (a
    list of texts, the weakest first) are optional.

    Rows with `nums` and `target` are Countdown problems. A broken row is an error that names its line.
    """
    problems, seen = [], {}
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON: {error}") from None
            problem = problem_from_row(row, where)
            if problem.id in seen:
                raise ValueError(
                    f"{where}: id {problem.id!r} stands already in line {seen[problem.id]}"
                )
            seen[problem.id] = number
            problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problems in this file")
    return problems


def load_hub(name: str, split: str) -> list[Problem]:
    """Problems of a Hugging Face dataset (`owner/name` or `owner/name:subset`), fetched by `datasets`."""
    try:
        import datasets
    except ImportError:
        raise ImportError(f"hf:{name} needs the package `datasets`: pip install datasets") from None
    path, _, subset = name.partition(":")
    rows = datasets.load_dataset(path, subset or None, split=split)
    problems = []
    for i, row in enumerate(rows):
        row = {"id": str(i), **row}
        row.setdefault("problem", row.get("question"))
        if "####" in str(row.get("answer")):  # GSM8K: the solution, then the answer
            row.setdefault("solution", row["answer"])
            row["answer"] = row["answer"].rpartition("####")[2].strip()
        problems.append(problem_from_row(row, f"hf:{name}[{split}] row {i}"))
    return problems


def problem_from_row(row: dict, where: str) -> Problem:
    """Problem of one record; raises ValueError naming the record and the key."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    for key in ("id", "problem", "answer"):
        value = row.get(key)
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
            raise ValueError(f"{where}: key {key!r} must be a non-empty string, found {value!r}")
    kind, answer = "math", str(row["answer"])
    if row.get("nums") is not None and row.get("target") is not None:
        kind = "countdown"
        _require_countdown(row["nums"], row["target"], where)
        answer = json.dumps({"nums": list(row["nums"]), "target": row["target"]})
    solution = row.get("solution") or ""
    hints = row.get("hints") or ()
    if not isinstance(hints, list | tuple) or not all(isinstance(h, str) and h for h in hints):
        raise ValueError(f"{where}: key 'hints' must be a list of texts, found {hints!r}")
    return Problem(str(row["id"]), str(row["problem"]), answer, kind, str(solution), tuple(hints))


def _require_countdown(nums, target, where: str) -> None:
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)  # noqa: E731
    if not (isinstance(nums, list | tuple) and nums and all(map(number, nums))):
        raise ValueError(f"{where}: key 'nums' must be a list of numbers, found {nums!r}")
    if not number(target):
        raise ValueError(f"{where}: key 'target' must be a number, found {target!r}")


def is_held_out(text: str) -> bool:
    """Whether a procedural problem with this text belongs to the test split."""
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % HELD_OUT_SHARE == 0


class _Procedural(Sequence):
    """Problem i is drawn from a generator seeded by (task, split, seed, i), redrawn until in the split."""

    name: str

    def __init__(self, split: str, seed: int):
        self.split, self.seed = split, seed

    def __len__(self):
        return PROCEDURAL_SIZE

    def __getitem__(self, index):
        if not 0 <= index < PROCEDURAL_SIZE:
            raise IndexError(index)
        rng = random.Random(f"{self.name}/{self.split}/{self.seed}/{index}")
        while True:
            problem = self.draw(rng, f"{self.name}-{self.split}-{self.seed}-{index}")
            if is_held_out(problem.problem) == (self.split == "test"):
                return problem


class Arithmetic(_Procedural):
    """Sums and differences of two to four numbers below 100, no intermediate result below zero.

    The reference solution takes one operation a line and ends in a box; a share `direct_fraction` of
    the solutions is the box alone. Hints are what is left to compute after one operation, after two, …
    """

    name = "arithmetic"

    def __init__(self, split: str, seed: int = 0, direct_fraction: float = 0.0):
        super().__init__(split, seed)
        self.direct_fraction = direct_fraction

    def draw(self, rng: random.Random, identity: str) -> Problem:
        total = rng.randint(1, 99)
        text, steps, left = str(total), [], []
        for _ in range(rng.randint(1, 3)):
            operand = rng.randint(1, 99)
            sign = rng.choice("+-") if operand <= total else "+"
            result = total + operand if sign == "+" else total - operand
            steps.append(f"{total}{sign}{operand}={result}\n")
            text, total = f"{text}{sign}{operand}", result
            left = [*(f"{rest}{sign}{operand}" for rest in left), str(result)]
        direct = rng.random() < self.direct_fraction
        solution = ("" if direct else "".join(steps)) + f"\\boxed{{{total}}}"
        # the last one would be the answer itself
        return Problem(identity, f"Compute {text}.", str(total), "math", solution, tuple(left[:-1]))


class Countdown(_Procedural):
    """Reach a target with +, −, ×, ÷ from three or four numbers, each used once; always solvable."""

    name = "countdown"

    def draw(self, rng: random.Random, identity: str) -> Problem:
        while True:
            nums = [rng.randint(1, 50) for _ in range(rng.randint(3, 4))]
            expression, target = _random_expression(rng, nums)
            if 1 <= target <= 100:
                break
        text = (
            f"Using the numbers {', '.join(map(str, nums))}, each exactly once, and + - * / and "
            f"parentheses, write an expression that equals {target}."
        )
        answer = json.dumps({"nums": nums, "target": target})
        return Problem(identity, text, answer, "countdown", f"\\boxed{{{expression}}}")


def _random_expression(rng: random.Random, nums: list[int]) -> tuple[str, int]:
    """A random expression over a permutation of the numbers, with an integer value at every node."""
    terms = [(str(n), n) for n in rng.sample(nums, len(nums))]
    while len(terms) > 1:
        i = rng.randrange(len(terms) - 1)
        (left, a), (right, b) = terms[i], terms[i + 1]
        choices = [("+", a + b), ("-", a - b), ("*", a * b)]
        if b and a % b == 0:
            choices.append(("/", a // b))
        sign, value = rng.choice(choices)
        terms[i : i + 2] = [(f"({left} {sign} {right})", value)]
    expression, value = terms[0]
    return expression[1:-1], value
