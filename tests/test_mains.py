"""sft, export and evaluate as programs, on problems of a file."""

import json

import pytest

from tests.test_train import command, rows, run


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    problems = [
        {
            "id": f"p{i}",
            "problem": f"Compute {i}+{i}.",
            "answer": str(2 * i),
            "solution": f"{i}+{i}={2 * i}\n\\boxed{{{2 * i}}}",
        }
        for i in range(1, 13)
    ]
    too_long = {"id": "long", "problem": "Compute " + "1+" * 300 + "1.", "answer": "301"}
    lines = [*problems, too_long | {"solution": "\\boxed{301}"}]
    path.write_text("".join(json.dumps(p) + "\n" for p in lines))
    return path


def test_sft_export_evaluate(tmp_path, problem_file):
    run_folder = str(tmp_path / "sft")
    done = run(
        command(
            "sft",
            run_folder,
            "--config.num_steps=20",
            "--config.batch_size=8",
            "--config.learner.micro_batch_size=4",
            "--config.data.max_prompt_length=32",
            config=f"configs/sft.py:model=tiny,task={problem_file}",
        )
    )
    assert done.returncode == 0, done.stderr
    assert "1 problems left out as too long, 12 remain" in done.stdout
    log = rows(run_folder)
    assert log[-1]["step"] == 20
    assert log[-1]["nll"] < log[0]["nll"]

    done = run([*command("export", run_folder)[:3], f"--workdir={run_folder}", "--step=7"])
    assert done.returncode != 0
    assert "--step: '7' is not there" in done.stderr
    done = run([*command("export", run_folder)[:3], f"--workdir={run_folder}"])
    assert done.returncode == 0, done.stderr

    done = run(
        command(
            "evaluate",
            str(tmp_path / "eval"),
            "--config.eval.num_generations=4",
            "--config.template=chat",
            "--config.max_prompt_length=32",
            "--config.max_completion_length=40",
            "--config.eval.batch_size=8",
            config=f"configs/evaluate.py:model={run_folder}/export,task={problem_file}",
        )
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "eval" / "eval" / "problems.json").read_text())
    assert {"source", "protocol", "model", "metrics", "intervals", "counts"} <= result.keys()
    assert {"greedy_pass@1", "avg@4", "pass@2", "pass@4", "maj@4"} <= result["metrics"].keys()
    assert result["counts"]["problems"] == 12
    assert result["counts"]["prompts_too_long"] == 1
    assert result["counts"]["generations"] == 12 * 5
    generations = rows(str(tmp_path / "eval" / "eval"), "problems.generations.jsonl")
    right = sum(g["greedy"][0]["verdict"] == "correct" for g in generations)
    assert result["metrics"]["greedy_pass@1"] == pytest.approx(right / 12)
    assert result["metrics"]["pass@4"] >= result["metrics"]["avg@4"]
