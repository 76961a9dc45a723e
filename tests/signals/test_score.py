import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_reason import learner
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.model import forward
from jaxrl_reason.objectives.surrogate import loss_weights, policy_loss
from jaxrl_reason.signals.score import score
from tests.toys import random_rows, toy_config, toy_params

PROMPT_LENGTHS, LENGTHS = (5, 2, 7, 1), (9, 4, 1, 6)
PROMPT, LENGTH = 7, 9


@pytest.fixture(scope="module")
def config():
    return toy_config(num_tokens=30)


@pytest.fixture(scope="module")
def params(config):
    return toy_params(config)


@pytest.fixture(scope="module")
def rows():
    """Prompt ids and mask, response ids and mask; what is masked is random."""
    rng = np.random.default_rng(0)
    return (
        *random_rows(rng, PROMPT_LENGTHS, PROMPT, 30, "left"),
        *random_rows(rng, LENGTHS, LENGTH, 30, "right"),
    )


@functools.cache
def scorer(config, temperature, **settings):
    return jax.jit(functools.partial(score, config, temperature=temperature, **settings))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_are_those_of_the_whole_logits(config, params, rows, temperature):
    logp, entropy = scorer(config, temperature)(params, *rows)
    tokens, mask = (np.concatenate([rows[i], rows[i + 2]], axis=1) for i in (0, 1))
    logits = np.asarray(jax.jit(forward, static_argnums=0)(config, params, tokens, mask))
    expected = np.asarray(jax.nn.log_softmax(logits[:, PROMPT - 1 : -1, :30] / temperature))
    by_hand = -np.sum(np.exp(expected) * expected, axis=-1)
    expected = np.take_along_axis(expected, rows[2][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.asarray(logp)[rows[3]], expected[rows[3]], atol=1e-5)
    np.testing.assert_allclose(np.asarray(entropy)[rows[3]], by_hand[rows[3]], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(logp)[~rows[3]], 0.0)
    np.testing.assert_array_equal(np.asarray(entropy)[~rows[3]], 0.0)


def test_what_is_masked_changes_nothing(config, params, rows):
    prompt_tokens, prompt_mask, tokens, mask = rows
    rng = np.random.default_rng(1)
    logp, entropy = scorer(config, 1.0)(params, *rows)

    def garbage(x, keep):
        return np.where(keep, x, rng.integers(0, config.vocab_size, x.shape)).astype(np.int32)

    def assert_unchanged(*other):
        for a, b in zip(scorer(config, 1.0)(params, *other), (logp, entropy), strict=True):
            np.testing.assert_allclose(a[:, :LENGTH], b, atol=1e-5, rtol=0)

    same = garbage(prompt_tokens, prompt_mask), prompt_mask, garbage(tokens, mask), mask
    assert_unchanged(*same)
    zeros = np.where(prompt_mask, prompt_tokens, 0), prompt_mask, np.where(mask, tokens, 0), mask
    assert_unchanged(*zeros)
    wider = np.pad(prompt_mask, ((0, 0), (6, 0)))
    longer = np.pad(mask, ((0, 0), (0, 3)))
    assert_unchanged(
        garbage(np.pad(prompt_tokens, ((0, 0), (6, 0))), wider),
        wider,
        garbage(np.pad(tokens, ((0, 0), (0, 3))), longer),
        longer,
    )


@pytest.mark.parametrize("remat", [False, True])
def test_masked_positions_have_no_gradient(config, params, rows, remat):
    prompt_tokens, prompt_mask, tokens, mask = rows

    def loss(params, weights, tokens):
        logp, entropy = scorer(config, 1.0, remat=remat)(
            params, prompt_tokens, prompt_mask, tokens, mask
        )
        return jnp.sum(weights * (logp + entropy))

    weights = np.random.default_rng(2).normal(size=mask.shape).astype(np.float32)
    gradient = jax.grad(loss)
    only_masked = gradient(params, np.where(mask, 0, weights).astype(np.float32), tokens)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(only_masked))
    # ids that stand in masked places only, and are scored nowhere else, keep their embedding
    unseen = np.where(mask, tokens % 20, 25).astype(np.int32)
    assert not np.isin(25, prompt_tokens[prompt_mask])
    touched = gradient(params, weights, unseen)
    assert np.isfinite(optax.tree.norm(touched))
    assert not np.asarray(touched["embed_tokens"][25]).any()
    assert np.asarray(touched["embed_tokens"][int(unseen[0, 0])]).any()
    np.testing.assert_array_equal(touched["lm_head"]["kernel"][:, 30:], 0.0)


def test_a_row_without_response_is_finite_and_zero(config, params, rows):
    prompt_tokens, prompt_mask, tokens, mask = rows
    empty = mask & (np.arange(4) != 1)[:, None]

    def loss(params):
        logp, entropy = scorer(config, 1.0)(params, prompt_tokens, prompt_mask, tokens, empty)
        return jnp.sum(logp), (logp, entropy)

    (_, (logp, entropy)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert not np.asarray(logp[1]).any() and not np.asarray(entropy[1]).any()
    assert np.isfinite(optax.tree.norm(gradient))


def test_recomputation_changes_no_gradient(config, params, rows):
    def gradient(**settings):
        return jax.grad(lambda p: jnp.sum(scorer(config, 1.0, **settings)(p, *rows)[0]))(params)

    plain = gradient()
    for settings in ({"remat": True}, {"chunk_tokens": 8}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
            gradient(**settings),
            plain,
        )


def first_update_deviation(config, params, rows, temperature, remat, micro_batch_size):
    """max |ratio − 1| of an update whose old log-probs were scored in the same micro-batches."""
    settings = {"temperature": temperature, "chunk_tokens": 16}
    scoring = scorer(config, temperature, chunk_tokens=16)
    parts = [
        scoring(params, *(x[i : i + micro_batch_size] for x in rows))[0]
        for i in range(0, len(rows[0]), micro_batch_size)
    ]
    mask = jnp.asarray(rows[3])
    batch = {
        "prompt_tokens": rows[0],
        "prompt_mask": rows[1],
        "tokens": rows[2],
        "mask": rows[3],
        "logp_old": np.concatenate(parts),
        "advantages": np.random.default_rng(3).normal(size=mask.shape).astype(np.float32),
        "weights": np.asarray(loss_weights(mask, "sequence_mean")),
    }

    def loss_fn(logp, entropy, batch):
        names = ("logp_old", "advantages", "mask")
        return policy_loss(logp, *(batch[name] for name in names), weights=batch["weights"])

    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    optimizer = optax.adam(1e-3)
    update = learner.make_update(
        config,
        optimizer,
        loss_fn,
        remat=remat,
        state_sharding=learner.state_shardings(mesh, optimizer, params),
        **settings,
    )
    masters = jax.device_put(jax.tree.map(jnp.copy, params), mesh_lib.param_shardings(mesh, params))
    state = learner.init_state(mesh, optimizer, masters)
    batch = learner.split_micro(batch, micro_batch_size)
    state, first = update(state, batch)
    _, second = update(state, batch)
    assert second["policy/ratio_deviation/max"] > 1e-3  # the metric moves once the policy has
    total, count = first["policy/ratio_deviation/mean"]
    assert count == rows[3].sum()
    assert total / count <= first["policy/ratio_deviation/max"]
    return float(first["policy/ratio_deviation/max"])


@pytest.mark.slow
@pytest.mark.parametrize("temperature, micro_batch_size, tied", [(1.0, 4, True), (0.7, 2, False)])
@pytest.mark.parametrize(
    "remat, scale, bound",
    [
        (True, 0.3, 1e-6),
        (False, 0.02, 1e-6),
        # without remat the update's forward pass keeps its activations and is fused otherwise; at
        # log-probs beyond -8 a single float32 rounding is 1e-6 already
        (False, 0.3, 1e-5),
    ],
)
def test_the_first_updates_ratio_is_one(
    rows, temperature, micro_batch_size, tied, remat, scale, bound
):
    config = toy_config(num_tokens=30, tie_word_embeddings=tied)
    start = toy_params(config, scale=scale)
    deviation = first_update_deviation(config, start, rows, temperature, remat, micro_batch_size)
    print(f"max |ratio - 1| = {deviation:.3g}")
    assert deviation <= bound
