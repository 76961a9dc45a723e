import json

import pytest

from jaxrl_reason.report.compare import table


def fake_run(folder, seed, lambda1, after, steps=2, planned=2):
    config = {"seed": seed, "num_steps": planned, "ispo": {"lambda1": lambda1}}
    (folder / "eval").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"main": "train", "config": config}))
    for name, value in (("before", 0.25), ("after", after)):
        metrics = {"greedy_pass@1": value, "avg@8": value}
        (folder / "eval" / f"{name}.json").write_text(json.dumps({"metrics": metrics}))
    row = {
        "accuracy": 0.5,
        "thinking_rate": 0.25,
        "zero_advantage/outcome": 0.5,
        "frac_reward_zero_std": 0.5,
        "step_time": 1.0,
        "entropy": 0.25,
        "completions/mean_length": 12.5,
    }
    lines = [json.dumps(row | {"step": i + 1}) + "\n" for i in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return str(folder)


def test_seeds_of_one_method_are_one_row_and_other_settings_another(tmp_path):
    folders = [
        fake_run(tmp_path / "ispo-0", 0, 0.1, after=0.5),
        fake_run(tmp_path / "ispo-1", 1, 0.1, after=0.7),
        fake_run(tmp_path / "ispo-2", 0, 0.5, after=0.9),
    ]
    lines = table(folders).splitlines()
    assert len(lines) == 4
    # mean 0.6, std √(2·0.1²/1) = 0.141
    assert "| ispo | 2 | 0.250 ± 0.000 | 0.600 ± 0.141 |" in lines[2]
    assert lines[3].startswith(f"| {folders[2]} | 1 |")
    assert "0.900" in lines[3]


def test_an_unfinished_run_is_refused(tmp_path):
    folder = fake_run(tmp_path / "ispo-0", 0, 0.1, after=0.5, steps=1)
    with pytest.raises(ValueError, match="ispo-0: 1 of 2 steps are done"):
        table([folder])


def test_rows_have_the_names_they_are_given_and_one_seed_has_no_spread(tmp_path):
    one = fake_run(tmp_path / "a-0", 0, 0.1, after=0.5)
    other = fake_run(tmp_path / "b-0", 0, 0.5, after=0.9)
    lines = table({"second": [other], "none": [], "first": [one]}).splitlines()
    columns = [cell.strip() for cell in lines[0].split("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["second", "none", "first"]
    second, none, first = ([cell.strip() for cell in line.split("|")] for line in lines[2:])
    assert second[columns.index("greedy after")] == "0.900"
    assert first[columns.index("entropy at the end")] == "0.250"
    assert first[columns.index("length at the end")] == "12.500"
    assert none[columns.index("seeds")] == "0"
    assert none[columns.index("greedy after")] == "–"
