import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.data.prompts import left_pad
from jaxrl_reason.model import forward, forward_hidden
from jaxrl_reason.rollout import SamplingParams, sample, sampler
from jaxrl_reason.rollout import logits as logits_lib
from jaxrl_reason.signals.score import score
from jaxrl_reason.types import Prompts
from tests.toys import on_virtual_devices, toy_config, toy_params

PROMPTS = [[4, 7, 9, 2], [5], [8, 8, 3, 6, 20, 11, 29], [30, 2, 31]]
LENGTH = 10
CACHE_LENGTH = 4096  # long enough for the cache to outweigh everything else
CHI_SQUARE_9 = 27.9  # 0.1 % quantile of the upper tail, 9 degrees of freedom


@pytest.fixture(scope="module")
def config():
    return toy_config(eos_token_ids=(1, 3, 17))


@pytest.fixture(scope="module")
def params(config):
    return toy_params(config)


@pytest.fixture(scope="module")
def rollouts(config, params):
    return sample(config, params, PROMPTS, 6, seed=5, max_completion_length=LENGTH)


def batch_of(prompts, keys, width=None):
    tokens, mask = left_pad(prompts, width or max(map(len, prompts)), 0)
    return Prompts(tokens, mask, np.asarray(keys, np.uint32))


def rescore(config, params, prompts, rollouts, temperature):
    tokens, mask = left_pad(prompts, max(map(len, prompts)), 0)
    tokens, mask = (
        np.repeat(x, len(rollouts.tokens) // len(prompts), axis=0) for x in (tokens, mask)
    )
    scorer = jax.jit(functools.partial(score, config, temperature=temperature))
    return scorer(params, tokens, mask, rollouts.tokens, rollouts.mask)[0]


def assert_ends_well(rollouts, ends, length):
    """Lengths, masks and flags by a loop over the tokens."""
    for row, tokens in enumerate(np.asarray(rollouts.tokens)):
        ended = [t for t in range(length) if tokens[t] in ends]
        count = ended[0] + 1 if ended else length
        assert rollouts.lengths[row] == count
        assert rollouts.truncated[row] == (not ended)
        assert np.asarray(rollouts.mask[row]).tolist() == [t < count for t in range(length)]
        assert not tokens[count:].any()
        assert not np.asarray(rollouts.logp[row, count:]).any()
        assert np.all(np.asarray(rollouts.logp[row, :count]) < 0)


def test_lengths_masks_and_flags_with_several_end_tokens(config, rollouts):
    assert rollouts.tokens.shape == (len(PROMPTS) * 6, LENGTH)
    assert_ends_well(rollouts, config.eos_token_ids, LENGTH)
    last = np.asarray(rollouts.tokens)[np.arange(24), np.asarray(rollouts.lengths) - 1]
    assert set(config.eos_token_ids) <= set(last.tolist())  # each of them ended some row
    assert 0 < np.asarray(rollouts.truncated).sum() < 24
    dtypes = {f.name: str(getattr(rollouts, f.name).dtype) for f in dataclasses.fields(rollouts)}
    assert dtypes == {
        "tokens": "int32", "mask": "bool", "logp": "float32", "lengths": "int32", "truncated": "bool"
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_samplers_log_probs_are_those_of_rescoring(config, params, temperature):
    rollouts = sample(
        config, params, PROMPTS, 6, seed=1, max_completion_length=LENGTH, temperature=temperature
    )
    rescored = rescore(config, params, PROMPTS, rollouts, temperature)
    np.testing.assert_allclose(rollouts.logp, rescored, atol=1e-4, rtol=0)


def test_prefill_and_decoding_equal_one_full_forward(config, params):
    rollouts = sample(config, params, PROMPTS, 2, 0, LENGTH, temperature=0.0)
    tokens, mask = left_pad([prompt for prompt in PROMPTS for _ in "ab"], 7, 0)
    tokens = np.concatenate([tokens, rollouts.tokens], axis=1)
    mask = np.concatenate([mask, rollouts.mask], axis=1)
    logits = np.asarray(jax.jit(forward, static_argnums=0)(config, params, tokens, mask))[:, 6:-1]
    kept = np.asarray(rollouts.mask)
    np.testing.assert_array_equal(np.asarray(rollouts.tokens)[kept], logits.argmax(-1)[kept])
    best = np.asarray(jax.nn.log_softmax(logits)).max(-1)  # at temperature 1
    np.testing.assert_allclose(np.asarray(rollouts.logp)[kept], best[kept], atol=1e-4, rtol=0)
    again = sample(config, params, PROMPTS, 2, 9, LENGTH, temperature=0.0, step=4)
    np.testing.assert_array_equal(again.tokens, rollouts.tokens)


def test_a_prompts_rollouts_do_not_depend_on_the_rest_of_the_batch(config, params):
    keys = [11, 12, 4_000_000_000, 14]
    whole = sample(config, params, batch_of(PROMPTS, keys), 6, 7, LENGTH, step=2)
    expected = np.asarray(whole.tokens[12:15])
    alone = sample(config, params, batch_of([PROMPTS[2]], [keys[2]]), 3, 7, LENGTH, step=2)
    np.testing.assert_array_equal(alone.tokens, expected)
    np.testing.assert_allclose(alone.logp, whole.logp[12:15], atol=1e-5, rtol=0)
    # other neighbours, another padding, more generations, more tokens
    others = batch_of([[9, 9], PROMPTS[2]], [3, keys[2]], width=16)
    more = sample(config, params, others, 5, 7, LENGTH + 6, step=2)
    np.testing.assert_array_equal(more.tokens[5:8, :LENGTH], expected)
    swapped = batch_of(PROMPTS[::-1], keys[::-1])
    turned = np.asarray(sample(config, params, swapped, 6, 7, LENGTH, step=2).tokens)
    rows = np.arange(24).reshape(4, 6)[::-1].ravel()
    np.testing.assert_array_equal(turned, np.asarray(whole.tokens)[rows])


def test_seed_step_key_and_index_select_the_random_numbers(config, params):
    def draw(seed=0, step=0, keys=(0, 1, 2, 3)):
        batch = batch_of([[4, 7]] * 4, keys, width=7)
        return np.asarray(sample(config, params, batch, 6, seed, LENGTH, step=step).tokens)

    base = draw()
    np.testing.assert_array_equal(base, draw())
    np.testing.assert_array_equal(base[:6], draw(keys=(0, 9, 8, 7))[:6])
    np.testing.assert_array_equal(draw(keys=(1, 2, 3, 0)), np.roll(base, -6, axis=0))
    assert len({row.tobytes() for row in base}) > 20  # of 24; short rows may coincide
    others = [draw(1), draw(-1), draw(step=1), draw(1, 1), draw(keys=(4, 5, 6, 7))]
    for i, a in enumerate([base, *others]):
        for b in others[i:]:
            assert np.mean(np.all(a == b, axis=1)) < 0.2


@pytest.fixture(scope="module")
def loud():
    """A model with ids beyond the tokenizer's (10, 11 of 12) whose logits are by far the largest."""
    config = toy_config(vocab_size=12, num_tokens=10, num_hidden_layers=1)
    params = toy_params(config, seed=3)
    prompt, mask = jnp.array([[2, 5, 4]]), jnp.ones((1, 3), bool)
    hidden = jax.jit(forward_hidden, static_argnums=0)(config, params, prompt, mask)[0, -1]
    head = params["lm_head"]["kernel"].at[:, 10:].set(10.0 * hidden[:, None])
    params["lm_head"]["kernel"] = head
    logits = jax.jit(forward, static_argnums=0)(config, params, prompt, mask)
    logits = np.asarray(logits, np.float64)[0, -1]
    assert logits.argmax() >= 10
    return config, params, prompt.tolist(), logits[:10]


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def chi_square(tokens, expected):
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=len(expected))
    assert len(counts) == len(expected)  # no id beyond the known ones
    return np.sum((counts - counts.sum() * expected) ** 2 / (counts.sum() * expected))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_first_tokens_follow_the_softmax_of_the_known_ids(loud, temperature):
    config, params, prompt, logits = loud
    rollouts = sample(config, params, prompt, 20_000, 3, 1, temperature=temperature)
    expected = softmax(logits / temperature)
    assert 20_000 * expected.min() > 5
    assert chi_square(rollouts.tokens, expected) < CHI_SQUARE_9
    logp = np.log(expected)[np.asarray(rollouts.tokens[:, 0])]
    np.testing.assert_allclose(rollouts.logp[:, 0], logp, atol=1e-5)


def test_first_tokens_of_many_keys_and_steps_follow_the_softmax(loud):
    config, params, prompt, logits = loud
    batch = batch_of(prompt * 2000, np.arange(2000))
    draws = [sample(config, params, batch, 1, 0, 1, step=step).tokens for step in range(5)]
    assert chi_square(np.concatenate(draws), softmax(logits)) < CHI_SQUARE_9
    # one step's tokens tell nothing about the next one's
    joint = np.asarray(draws[0])[:, 0] * 10 + np.asarray(draws[1])[:, 0]
    expected = np.outer(softmax(logits), softmax(logits)).ravel()
    keep = 2000 * expected > 5
    counts = np.bincount(joint, minlength=100)[keep]
    statistic = np.sum((counts - 2000 * expected[keep]) ** 2 / (2000 * expected[keep]))
    assert statistic < keep.sum() + 4 * np.sqrt(2 * keep.sum())


def test_greedy_never_takes_an_unknown_id(loud):
    config, params, prompt, logits = loud
    rollouts = sample(config, params, prompt, max_completion_length=6, temperature=0.0)
    assert rollouts.tokens[0, 0] == logits.argmax()
    assert rollouts.tokens.max() < 10


def test_top_k_and_top_p_draw_from_the_restricted_softmax(loud):
    config, params, prompt, logits = loud
    order = np.argsort(-logits)
    probabilities = softmax(logits)
    nucleus = order[: 1 + np.sum(np.cumsum(probabilities[order]) < 0.8)]
    assert 1 < len(nucleus) < 9
    for restriction, kept in (({"top_k": 3}, order[:3]), ({"top_p": 0.8}, nucleus)):
        rollouts = sample(config, params, prompt, 5000, 0, 1, **restriction)
        tokens = np.asarray(rollouts.tokens[:, 0])
        assert set(tokens.tolist()) == set(kept.tolist())
        counts = np.bincount(tokens, minlength=10)[kept]
        expected = 5000 * probabilities[kept] / probabilities[kept].sum()
        assert np.sum((counts - expected) ** 2 / expected) < CHI_SQUARE_9
        # log-probs stay those of the whole distribution
        np.testing.assert_allclose(rollouts.logp[:, 0], np.log(probabilities)[tokens], atol=1e-5)


def test_top_k_of_one_is_greedy(config, params):
    greedy = sample(config, params, PROMPTS, 2, 0, LENGTH, temperature=0.0)
    one = sample(config, params, PROMPTS, 2, 0, LENGTH, temperature=1.0, top_k=1)
    np.testing.assert_array_equal(one.tokens, greedy.tokens)
    np.testing.assert_allclose(one.logp, greedy.logp, atol=1e-5)


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [0, 2]),
        (4, 1.0, [0, 1, 2, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.3, [2]),
        (0, 0.5, [2]),  # probability at least top_p: 0.5 is reached by the first
        (0, 0.51, [0, 2]),
        (0, 0.79, [0, 2]),
        (0, 0.81, [0, 1, 2]),
        (0, 0.999, [0, 1, 2, 3]),
        (2, 0.62, [2]),  # after top_k the first holds 0.5/0.8 = 0.625
        (2, 0.63, [0, 2]),
    ],
)
def test_restrictions_by_hand(top_k, top_p, kept):
    logits = jnp.log(jnp.array([[0.3, 0.15, 0.5, 0.05]]))
    restricted = np.asarray(logits_lib.restrict(logits, top_k, top_p))[0]
    assert np.flatnonzero(restricted > -1e29).tolist() == kept
    np.testing.assert_array_equal(restricted[kept], np.asarray(logits)[0, kept])


def test_ties_with_the_last_kept_value_are_kept():
    logits = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.2]]))
    for restricted in (logits_lib.restrict(logits, 2, 1.0), logits_lib.restrict(logits, 0, 0.5)):
        assert (np.asarray(restricted) > -1e29).all()


def test_temper():
    logits = jnp.array([[2.0, 4.0, 100.0]])
    expected = np.array([[4.0, 8.0, -1e30]], np.float32)
    np.testing.assert_array_equal(logits_lib.temper(logits, 0.5, 2), expected)
    greedy = np.array([[2.0, 4.0, -1e30]], np.float32)  # greedy is scored at temperature 1
    np.testing.assert_array_equal(logits_lib.temper(logits, 0.0, 2), greedy)


def test_rows_that_all_end_at_once(config, params):
    params = params | {"lm_head": {"kernel": jnp.zeros_like(params["lm_head"]["kernel"])}}
    # all logits equal: greedy takes id 0 for ever, or at once when 0 is an end token
    for ends, count in (((0,), 1), (config.eos_token_ids, LENGTH)):
        ending = dataclasses.replace(config, eos_token_ids=ends)
        rollouts = sample(ending, params, PROMPTS, 2, 0, LENGTH, temperature=0.0)
        assert np.asarray(rollouts.lengths).tolist() == [count] * 8
        assert_ends_well(rollouts, ends, LENGTH)


def test_one_token_completions(config, params, rollouts):
    one = sample(config, params, PROMPTS, 6, seed=5, max_completion_length=1)
    assert one.tokens.shape == (24, 1)
    assert_ends_well(one, config.eos_token_ids, 1)
    np.testing.assert_array_equal(one.tokens[:, 0], rollouts.tokens[:, 0])
    np.testing.assert_allclose(one.logp[:, 0], rollouts.logp[:, 0], atol=1e-5)


@pytest.mark.slow
def test_bfloat16_sampling_is_near_its_own_rescoring(config, params):
    half = dataclasses.replace(config, dtype="bfloat16")
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rollouts = sample(half, cast, PROMPTS, 4, 0, LENGTH)
    assert_ends_well(rollouts, config.eos_token_ids, LENGTH)
    rescored = rescore(half, cast, PROMPTS, rollouts, 1.0)
    difference = np.abs(np.asarray(rollouts.logp) - np.asarray(rescored))
    assert difference.mean() < 0.02


@pytest.mark.parametrize(
    "argument, value",
    [
        ("num_generations", 0),
        ("max_completion_length", 0),
        ("max_completion_length", -3),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
    ],
)
def test_impossible_arguments_are_named(config, params, argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: {value}"):
        sample(config, params, PROMPTS, **{argument: value})
    with pytest.raises(ValueError, match=f"^{argument}: {value}"):
        SamplingParams(**({"num_generations": 1, "max_completion_length": 1} | {argument: value}))


def test_a_seed_of_too_many_bits_is_refused(config, params):
    with pytest.raises(ValueError, match="^seed: 2147483648"):
        sample(config, params, PROMPTS, seed=2**31)


def test_a_model_without_end_token_is_refused(params):
    with pytest.raises(ValueError, match="eos_token_ids"):
        sample(toy_config(eos_token_ids=()), params, PROMPTS)


def test_empty_prompts_are_refused(config, params):
    with pytest.raises(ValueError, match="empty prompt"):
        sample(config, params, [[4], []])
    with pytest.raises(ValueError, match="^prompts: there are none"):
        sample(config, params, [])


def sample_on_meshes(path):
    """Run in a process with 8 devices: rollouts of one batch on three meshes, the cache in parts."""
    config = toy_config(eos_token_ids=(1, 3, 17))
    params = toy_params(config)
    for sizes in ({"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = mesh_lib.make_mesh(**({"data": 1} | sizes))
        placed = jax.device_put(params, mesh_lib.param_shardings(mesh, params))
        batch = batch_of(PROMPTS * 2, np.arange(8))
        tokens, mask, keys = mesh_lib.put_batch(mesh, (batch.tokens, batch.mask, batch.keys))
        rollouts = sample(config, placed, Prompts(tokens, mask, keys), 2, 5, LENGTH, step=3)
        shards = sampler._decode.lower(
            config,
            SamplingParams(2, CACHE_LENGTH),
            placed,
            mask,
            *sampler._prefill(config, placed, tokens, mask),
            sampler._row_keys(5, 3, keys, 2),
        )
        cache = 2 * config.num_hidden_layers * 16 * CACHE_LENGTH * 2 * config.head_dim * 4
        assert shards.compile().memory_analysis().temp_size_in_bytes < 0.75 * cache
        name = f"{path}/{'_'.join(sizes)}.npz"
        np.savez(name, tokens=rollouts.tokens, logp=rollouts.logp, lengths=rollouts.lengths)


@pytest.mark.slow
def test_eight_devices_give_the_same_rollouts_as_one(config, params, tmp_path):
    expected = sample(config, params, batch_of(PROMPTS * 2, np.arange(8)), 2, 5, LENGTH, step=3)
    on_virtual_devices(sample_on_meshes, str(tmp_path))
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 3
    for file in files:
        got = np.load(file)
        np.testing.assert_array_equal(got["tokens"], expected.tokens)
        np.testing.assert_array_equal(got["lengths"], expected.lengths)
        np.testing.assert_allclose(got["logp"], expected.logp, atol=1e-4, rtol=0)
