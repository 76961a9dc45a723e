import dataclasses
import functools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason import lorenz, policy_of_run
from jaxrl_reason.config import SftConfig, TrainConfig
from jaxrl_reason.model import forward
from jaxrl_reason.report import lorenz_curve
from jaxrl_reason.signals.gradient_norm import policy_gradient_norms
from jaxrl_reason.workdir import write_json
from tests.test_train import ROOT, SMALL, command, rows, run
from tests.toys import random_rows, toy_config, toy_params


def test_equal_values_give_the_diagonal():
    tokens, carried = lorenz_curve.lorenz_curve(np.full(8, 0.3))
    np.testing.assert_allclose(tokens, np.arange(9) / 8)
    np.testing.assert_allclose(carried, tokens)
    assert lorenz_curve.gini(np.full(8, 0.3)) == pytest.approx(0.0)


def test_a_single_value_gives_a_step():
    values = np.array([0.0, 0.0, 7.0, 0.0])
    tokens, carried = lorenz_curve.lorenz_curve(values)
    np.testing.assert_array_equal(tokens, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(carried, [0, 1, 1, 1, 1])
    assert lorenz_curve.gini(values) == pytest.approx(1 - 1 / 4)


def test_a_curve_by_hand():
    # 5, 3, 2 of 10: shares 0.5, 0.8, 1; area under it (0.25 + 0.65 + 0.9) / 3 = 0.6
    tokens, carried = lorenz_curve.lorenz_curve(np.array([3.0, 5.0, 2.0]))
    np.testing.assert_allclose(carried, [0, 0.5, 0.8, 1])
    assert lorenz_curve.gini(np.array([3.0, 5.0, 2.0])) == pytest.approx(2 * 0.6 - 1)
    assert lorenz_curve.top_share(np.array([3.0, 5.0, 2.0]), 0.05) == pytest.approx(0.5)
    assert lorenz_curve.top_share(np.array([3.0, 5.0, 2.0]), 0.4) == pytest.approx(0.8)
    # ⌈0.15·100⌉ is 15 in decimals, in binary 0.15·100 lies above it
    assert lorenz_curve.top_share(np.ones(100), 0.15) == pytest.approx(0.15)


@pytest.mark.parametrize("values", [[0.0, 0.0], [], [1.0, -1.0], [1.0, math.nan], [math.inf]])
def test_what_has_no_curve_is_refused(values):
    with pytest.raises(ValueError, match="values:"):
        lorenz_curve.lorenz_curve(np.array(values))


def test_shares_of_sets():
    values = np.array([5.0, 3.0, 2.0, 0.0])
    sets = {"first": np.array([0, 1, 0, 1], bool), "none": np.zeros(4, bool)}
    shares = lorenz_curve.set_shares(values, sets)
    # 3 + 0 of 10 by two of four tokens; the two largest carry 8
    expected = {"share_of_tokens": 0.5, "share_of_norm": 0.3, "largest": 0.8}
    assert shares["first"] == pytest.approx(expected)
    assert set(shares["none"].values()) == {0.0}


def test_the_written_curve_and_its_picture(tmp_path):
    values = np.random.default_rng(0).exponential(size=1000)
    summary = lorenz_curve.summarise(values)
    written = summary["curve"]
    assert written["share_of_tokens"][0] == written["share_of_norm"][0] == 0.0
    assert written["share_of_tokens"][-1] == written["share_of_norm"][-1] == 1.0
    at_ten = np.interp(0.1, written["share_of_tokens"], written["share_of_norm"])
    assert at_ten == pytest.approx(summary["top"]["0.1"], abs=1e-9)
    assert np.sum(np.sort(values)[-100:]) / np.sum(values) == pytest.approx(at_ten)
    sets = lorenz_curve.set_shares(values, {"large": values > 2})
    lorenz_curve.draw(str(tmp_path / "a.png"), {"all": summary}, sets, "a title")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_norms_of_a_model_are_those_of_its_logits():
    config = toy_config(num_tokens=30)
    params, rng = toy_params(config), np.random.default_rng(0)
    prompt, prompt_mask = random_rows(rng, (5, 2, 7), 7, 30, "left")
    tokens, mask = random_rows(rng, (9, 4, 1), 9, 30, "right")
    norms = functools.partial(policy_gradient_norms, config, temperature=0.7, chunk_tokens=6)
    got = jax.jit(norms)(params, prompt, prompt_mask, tokens, mask)
    whole = np.concatenate([prompt, tokens], axis=1), np.concatenate([prompt_mask, mask], axis=1)
    logits = jax.jit(forward, static_argnums=0)(config, params, *whole)[:, 6:-1, :30] / 0.7
    gradient = jax.vmap(jax.vmap(jax.grad(lambda z, y: jax.nn.log_softmax(z)[y])))(logits, tokens)
    expected = jnp.where(mask, jnp.linalg.norm(gradient, axis=-1), 0.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def some_tokens(advantage):
    sets = dict.fromkeys(("uncertain", "drift", "critical"), np.array([1, 0, 0, 0], bool))
    return {"norm": np.array([0.5, 0.1, 0.2, 0.2]), "advantage": np.array(advantage), **sets}


def test_advantages_weigh_the_norms_and_unit_ones_do_not():
    tokens = some_tokens([-2.0, 1.0, 0.0, 0.0])  # norms 1.0, 0.1, 0, 0
    result = lorenz.summarise(tokens, "recipe")
    assert result["num_tokens"] == 4
    assert result["num_tokens_without_advantage"] == 2
    assert result["curves"][lorenz.ALL]["top"]["0.05"] == pytest.approx(1.0 / 1.1)
    assert result["curves"][lorenz.ACTIVE]["count"] == 2
    assert result["sets"]["critical"]["share_of_norm"] == pytest.approx(1.0 / 1.1)
    unit = lorenz.summarise(tokens, "unit")
    assert unit["sets"]["critical"]["share_of_norm"] == pytest.approx(0.5)


def test_without_any_advantage_only_the_unit_curve_exists():
    tokens = some_tokens([0.0] * 4)
    with pytest.raises(ValueError, match="none of 4 response tokens has an advantage"):
        lorenz.summarise(tokens, "recipe")
    assert lorenz.summarise(tokens, "unit")["curves"].keys() == {lorenz.ALL}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        policy_of_run.run_config(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        policy_of_run.load_policy(str(tmp_path), "latest", None, TrainConfig())
    assert not list(tmp_path.iterdir())  # looking for checkpoints made no folder


def test_bad_flags_are_refused_by_name(tmp_path):
    tool = [sys.executable, "-m", "jaxrl_reason.lorenz", f"--workdir={tmp_path}"]
    written = {"main": "sft", "config": dataclasses.asdict(SftConfig())}
    write_json(str(tmp_path / "config.json"), written)
    for arg, named in (
        ("--num_batches=0", "error: --num_batches: 0"),
        ("--step=start", "error: --workdir: 'SftConfig'"),
    ):
        done = subprocess.run([*tool, arg], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        assert named in done.stderr + done.stdout
    assert not (tmp_path / "lorenz").exists()


@pytest.mark.slow
def test_the_curve_of_a_run(tmp_path):
    folder = str(tmp_path / "run")
    done = run(command("train", folder, *SMALL, "--config.num_steps=4"))
    assert done.returncode == 0, done.stderr
    tool = [sys.executable, "-m", "jaxrl_reason.lorenz", f"--workdir={folder}"]
    done = run([*tool, "--step=7"])
    assert done.returncode != 0
    assert "--step: '7' is not there; allowed: latest, best, start" in done.stderr

    done = run([*tool, "--step=2"])
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "lorenz" / "step_2.json").read_text())
    assert (tmp_path / "run" / "lorenz" / "step_2.png").exists()
    # the tokens are those of the run's next step
    row = rows(folder)[2]
    assert result["num_tokens"] == row["completions/mean_length"] * 32
    assert result["sets"]["uncertain"]["share_of_tokens"] == row["ispo/uncertain_fraction"]
    tops = result["curves"][lorenz.ALL]["top"]
    assert 0.05 < tops["0.05"] < tops["0.1"] < tops["0.2"] <= 1.0
    for share in result["sets"].values():
        assert share["share_of_norm"] <= share["largest"] + 1e-9

    done = run([*tool, "--step=start", "--advantage=unit"])
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "lorenz" / "step_0.unit.json").read_text())
    assert result["sets"]["drift"]["share_of_tokens"] == 0.0  # π is π_0
