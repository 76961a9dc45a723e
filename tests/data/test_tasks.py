import ast
import json
import re

import pytest

from jaxrl_reason.config import EvalSection
from jaxrl_reason.data import tasks
from jaxrl_reason.data.tasks import Arithmetic, Countdown, evaluation_problems, load_source
from jaxrl_reason.verify import Verdict, extract
from jaxrl_reason.verify.countdown import compare_countdown

COUNT = 400
PROCEDURAL = [Arithmetic, Countdown]


def take(source, count=COUNT):
    return [source[i] for i in range(count)]


@pytest.mark.parametrize("task", PROCEDURAL)
def test_a_problem_is_the_same_for_ever_and_its_id_unique(task):
    problems = take(task("train", 3))
    assert problems == take(task("train", 3))
    assert len({p.id for p in problems}) == COUNT
    assert problems != take(task("train", 4))


def test_problems_do_not_change_between_versions():
    assert Arithmetic("train", 0)[0] == load_source("arithmetic", split="train")[0]
    assert [p.answer for p in take(Arithmetic("test", 0), 4)] == ["93", "80", "125", "65"]


@pytest.mark.parametrize("task", PROCEDURAL)
def test_no_held_out_problem_is_ever_trained_on(task):
    train = {p.problem for seed in range(3) for p in take(task("train", seed))}
    held_out = {p.problem for seed in range(3) for p in take(task("test", seed))}
    assert not train & held_out
    assert not any(tasks.is_held_out(text) for text in train)
    assert all(tasks.is_held_out(text) for text in held_out)


def test_one_text_in_eight_is_held_out():
    share = sum(tasks.is_held_out(f"Compute {i}.") for i in range(8000)) / 8000
    assert share == pytest.approx(1 / 8, abs=0.02)


def value(expression):
    """Value of sums and differences of whole numbers."""
    node = ast.parse(expression, mode="eval").body

    def walk(node):
        if isinstance(node, ast.Constant):
            return node.value
        left, right = walk(node.left), walk(node.right)
        return left + right if isinstance(node.op, ast.Add) else left - right

    return walk(node)


def test_every_step_of_every_arithmetic_solution_is_right():
    for problem in take(Arithmetic("train", 0)):
        expression = re.fullmatch(r"Compute (.+)\.", problem.problem)[1]
        assert 2 <= len(re.findall(r"\d+", expression)) <= 4
        assert str(value(expression)) == problem.answer
        *steps, box = problem.solution.split("\n")
        assert box == f"\\boxed{{{problem.answer}}}"
        assert extract(problem.solution) == problem.answer
        running = re.match(r"\d+", expression)[0]
        for step, operation in zip(steps, re.findall(r"[+-]\d+", expression), strict=True):
            left, right = step.split("=")
            assert left == running + operation
            assert str(value(left)) == right and int(right) >= 0
            running = right
        assert running == problem.answer


def test_direct_solutions_are_the_bare_box_and_change_nothing_else():
    plain, half = take(Arithmetic("train", 0)), take(Arithmetic("train", 0, 0.5))
    assert [p.problem for p in plain] == [p.problem for p in half]
    direct = [p for p in half if p.solution == f"\\boxed{{{p.answer}}}"]
    assert len(direct) / COUNT == pytest.approx(0.5, abs=0.1)
    assert all(p.solution.startswith("\\boxed") for p in take(Arithmetic("train", 0, 1.0)))


def test_every_countdown_solution_verifies():
    for problem in take(Countdown("train", 0)):
        assert problem.kind == "countdown"
        gold = json.loads(problem.answer)
        assert 3 <= len(gold["nums"]) <= 4 and 1 <= gold["target"] <= 100
        assert ", ".join(map(str, gold["nums"])) in problem.problem
        assert str(gold["target"]) in problem.problem
        assert compare_countdown(problem.answer, extract(problem.solution)) is Verdict.correct


@pytest.mark.parametrize("index", [-1, tasks.PROCEDURAL_SIZE])
def test_an_index_outside_is_an_index_error(index):
    with pytest.raises(IndexError):
        Arithmetic("train")[index]


@pytest.mark.parametrize(
    ("name", "split", "named"),
    [
        ("algebra", "train", "'algebra' is none of arithmetic, countdown"),
        ("arithmetic", "validation", "'validation' is not one of"),
    ],
)
def test_an_unknown_source_or_split_is_named(name, split, named):
    with pytest.raises(ValueError, match=named):
        load_source(name, split=split)


def write(tmp_path, *rows):
    path = tmp_path / "problems.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


GOOD = {"id": "a", "problem": "1+1?", "answer": "2"}


def test_jsonl(tmp_path):
    path = write(
        tmp_path,
        GOOD,
        "",
        {"id": 2, "problem": "½ of 3?", "answer": 1.5, "solution": "so \\boxed{1.5}", "extra": 0},
        {"id": "c", "problem": "make 8", "answer": "3+5", "nums": [3, 5], "target": 8},
    )
    one, two, three = load_source(path, split="train")
    assert one == tasks.Problem("a", "1+1?", "2", "math", "")
    assert two == tasks.Problem("2", "½ of 3?", "1.5", "math", "so \\boxed{1.5}")
    assert three.kind == "countdown" and json.loads(three.answer) == {"nums": [3, 5], "target": 8}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"id": "b", "problem": "?"}, "key 'answer' .*None"),
        ({"id": "b", "problem": "", "answer": "1"}, "key 'problem' .*''"),
        ({"id": None, "problem": "?", "answer": "1"}, "key 'id' .*None"),
        ({"id": "b", "problem": "?", "answer": True}, "key 'answer' .*True"),
        ({"id": "b", "problem": "?", "answer": ["1"]}, r"key 'answer' .*\['1'\]"),
        ({"id": "b", "problem": "?", "answer": "1", "nums": 3, "target": 3}, "key 'nums' .*3"),
        ({"id": "b", "problem": "?", "answer": "1", "nums": ["x"], "target": 3}, "key 'nums' "),
        ({"id": "b", "problem": "?", "answer": "1", "nums": [3], "target": "x"}, "key 'target' "),
        ("[1]", "expected an object, found list"),
        ('{"id": "b"', "not JSON"),
        (GOOD, "id 'a' stands already in line 1"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_key(tmp_path, row, named):
    path = write(tmp_path, GOOD, row)
    with pytest.raises(ValueError, match=rf"problems\.jsonl:2: .*{named}"):
        load_source(path, split="train")


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no problems"):
        load_source(write(tmp_path, ""), split="train")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        load_source("nowhere.jsonl", split="train")


def test_evaluation_takes_the_first_problems(tmp_path):
    path = write(tmp_path, GOOD, GOOD | {"id": "b"}, GOOD | {"id": "c"})
    ids = lambda n: [p.id for p in evaluation_problems(EvalSection(source=path, num_problems=n))]  # noqa: E731
    assert ids(2) == ["a", "b"] and ids(0) == ids(9) == ["a", "b", "c"]
    problems = evaluation_problems(EvalSection(num_problems=3))
    assert problems == take(Arithmetic("test"), 3)
    with pytest.raises(ValueError, match="eval.num_problems"):
        evaluation_problems(EvalSection(num_problems=0))
