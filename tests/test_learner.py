import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxrl_reason import learner
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.config import OptimizerSection
from jaxrl_reason.objectives.surrogate import LOSS_TYPES
from tests import tiny_model

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def sgd(mesh):
    """Plain descent of rate 1: the parameters after an update show its gradient."""
    return tiny_model.make_learner(mesh)


@pytest.fixture(scope="module")
def adam(mesh):
    return tiny_model.make_learner(mesh, optax.adam(1e-2))


def assert_trees(got, expected, **tolerance):
    compare = lambda a, b: np.testing.assert_allclose(a, b, **tolerance)  # noqa: E731
    jax.tree.map(compare, jax.device_get(got), jax.device_get(expected))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_accumulation_does_not_change_the_gradient(mesh, sgd, loss_type):
    start, update = sgd
    batch = tiny_model.make_batch(loss_type)
    whole, whole_metrics = tiny_model.step(mesh, update, start(), batch, 8)
    single, single_metrics = tiny_model.step(mesh, update, start(), batch, 1)
    assert whole_metrics["grad_norm"][0] > 0.01
    assert_trees(single.params, whole.params, atol=2e-6)
    assert whole_metrics.keys() == single_metrics.keys()
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(single_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_metrics_are_sums_over_the_whole_batch(mesh, sgd):
    start, update = sgd
    batch = tiny_model.make_batch("token_mean")
    _, metrics = tiny_model.step(mesh, update, start(), batch, 1)
    assert metrics["kl"][1] == batch["mask"].sum()
    assert metrics["loss"][1] == metrics["grad_norm"][1] == 1.0


def test_rows_without_tokens_and_garbage_in_the_padding_change_nothing(mesh, sgd):
    start, update = sgd
    batch = tiny_model.make_batch("sequence_mean")
    expected, _ = tiny_model.step(mesh, update, start(), batch, 8)
    empty = ~batch["mask"].any(axis=1)
    assert empty.sum() == 1
    dirty = dict(batch)
    for name in ("advantages", "logp_old", "logp_ref"):
        dirty[name] = np.where(batch["mask"], batch[name], np.nan).astype(np.float32)
    dirty["tokens"] = np.where(batch["mask"], batch["tokens"], 17).astype(np.int32)
    dirty["prompt_tokens"] = np.where(batch["prompt_mask"], batch["prompt_tokens"], 17)
    dirty["prompt_tokens"][empty] = 23
    got, _ = tiny_model.step(mesh, update, start(), dirty, 8)
    assert_trees(got.params, expected.params, atol=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(mesh, adam, poison):
    start, update = adam
    good = tiny_model.make_batch("sequence_mean")
    bad = dict(good, advantages=good["advantages"].copy())
    bad["advantages"][0, 0] = poison
    counters = lambda s: (int(s.step), int(s.skipped), int(s.skipped_in_row))  # noqa: E731

    state, _ = tiny_model.step(mesh, update, start(), good, 8)
    assert counters(state) == (1, 0, 0)
    before = jax.device_get((state.params, state.opt_state))
    for i in (1, 2):
        state, metrics = tiny_model.step(mesh, update, state, bad, 8)
        assert not np.isfinite(metrics["loss"][0]) or not np.isfinite(metrics["grad_norm"][0])
        assert_trees((state.params, state.opt_state), before, rtol=0)
        assert counters(state) == (1 + i, i, i)
    state, metrics = tiny_model.step(mesh, update, state, good, 8)
    assert counters(state) == (4, 2, 0)
    assert np.isfinite(metrics["loss"][0])
    # the same as if the bad batches had never been
    expected, _ = tiny_model.step(mesh, update, start(), good, 8)
    expected, _ = tiny_model.step(mesh, update, expected, good, 8)
    assert_trees((state.params, state.opt_state), (expected.params, expected.opt_state), rtol=0)


def test_a_batch_without_weight_leaves_the_state_alone(mesh, adam):
    """Adam's momentum and decay would move the weights although there is nothing to learn from."""
    start, update = adam
    batch = tiny_model.make_batch("sequence_mean")
    state, _ = tiny_model.step(mesh, update, start(), batch, 8)
    before = jax.device_get((state.params, state.opt_state))
    blank = batch | {"weights": np.zeros_like(batch["weights"])}
    state, metrics = tiny_model.step(mesh, update, state, blank, 8)
    assert_trees((state.params, state.opt_state), before, rtol=0)
    assert metrics["grad_norm"][0] == 0
    assert (int(state.step), int(state.skipped)) == (2, 0)


def test_mini_batches_are_adjacent_rows():
    parts = learner.mini_batches({"a": np.arange(6)}, 3)
    assert [part["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]


def test_eight_devices_give_the_update_of_one():
    run = subprocess.run(
        [sys.executable, "-m", "tests.sharded_update"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("equal")


def test_split_micro_keeps_the_order():
    split = learner.split_micro({"a": np.arange(12).reshape(6, 2)}, 3)
    assert split["a"].shape == (2, 3, 2)
    np.testing.assert_array_equal(split["a"][1, 0], [6, 7])


def rates(num_steps, **settings):
    _, schedule = learner.make_optimizer(OptimizerSection(**settings), num_steps)
    return [float(schedule(i)) for i in range(num_steps + 1)]


def test_schedules():
    np.testing.assert_allclose(rates(3, learning_rate=0.4), [0.4] * 4, rtol=1e-6)
    # warm-up over two updates (the first is not wasted at rate 0), then constant
    np.testing.assert_allclose(
        rates(4, learning_rate=0.4, warmup_steps=2), [0.2, 0.4, 0.4, 0.4, 0.4], rtol=1e-6
    )
    # cosine from 0.4 to a tenth of it: the middle is (0.4 + 0.04)/2
    np.testing.assert_allclose(
        rates(4, learning_rate=0.4, schedule="cosine", final_fraction=0.1)[::2],
        [0.4, 0.22, 0.04],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        rates(4, learning_rate=0.4, schedule="cosine", warmup_steps=2),
        [0.2, 0.4, 0.4, 0.2, 0.0],
        atol=1e-7,
    )


def test_warm_up_counts_steps_whatever_the_updates_in_each():
    section = OptimizerSection(learning_rate=0.4, warmup_steps=2)
    _, schedule = learner.make_optimizer(section, 4, updates_per_step=2)
    np.testing.assert_allclose(
        [schedule(i) for i in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6
    )


def test_first_adamw_update_by_hand():
    section = OptimizerSection(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0)
    optimizer, _ = learner.make_optimizer(section, 10)
    params = {"w": np.float32([2.0, -4.0])}
    # the norm 50 is clipped to 1; Adam's first step is the sign; then decay 0.5·w, all times −0.1
    updates, _ = optimizer.update({"w": np.float32([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1 * (1 + 1.0), -0.1 * (1 - 2.0)], rtol=1e-5)
