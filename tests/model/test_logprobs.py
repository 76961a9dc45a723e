import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_reason.model.logprobs import gradient_norm, mask_unknown_ids, token_logprobs
from jaxrl_reason.signals.score import score
from tests.toys import toy_config, toy_params

ROWS, LENGTH, WIDTH, VOCAB = 3, 11, 5, 40
CHUNKS = [1, 7, 12, 4096]  # chunk_tokens: slices of 1, 2, 4 (rests of the 11 positions) and all 11


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    head = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    targets = rng.integers(0, 30, (ROWS, LENGTH)).astype(np.int32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(targets)


def plain(hidden, head, targets, temperature, num_tokens):
    """The same by one log_softmax over all logits of the known ids."""
    logits = (hidden @ head)[..., :num_tokens] / temperature
    logp = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0], entropy


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_values_are_those_of_log_softmax(inputs, chunk_tokens, temperature):
    keywords = {"temperature": temperature, "num_tokens": 33}
    logp, entropy = token_logprobs(*inputs, chunk_tokens=chunk_tokens, **keywords)
    expected_logp, expected_entropy = plain(*inputs, **keywords)
    assert logp.shape == entropy.shape == (ROWS, LENGTH)
    assert logp.dtype == entropy.dtype == jnp.float32
    np.testing.assert_allclose(logp, expected_logp, atol=1e-5, rtol=0)
    np.testing.assert_allclose(entropy, expected_entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_gradients_are_those_of_log_softmax(inputs, chunk_tokens):
    hidden, head, targets = inputs
    rng = np.random.default_rng(1)
    by_logp, by_entropy = (jnp.asarray(rng.normal(size=(ROWS, LENGTH)), jnp.float32) for _ in "ab")

    def weighted(function, **keywords):
        def loss(hidden, head):
            logp, entropy = function(
                hidden, head, targets, temperature=0.7, num_tokens=33, **keywords
            )
            return jnp.sum(by_logp * logp + by_entropy * entropy)

        return jax.grad(loss, argnums=(0, 1))(hidden, head)

    got, expected = weighted(token_logprobs, chunk_tokens=chunk_tokens), weighted(plain)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(got[1][:, 33:], 0.0)  # ids without a token learn nothing


def test_a_case_by_hand():
    # logits (ln 1, ln 3, huge) at temperature 1, the third id unknown: probabilities 1/4 and 3/4
    head = jnp.log(jnp.array([[1.0, 3.0, 1e30]]))
    logp, entropy = token_logprobs(
        jnp.ones((1, 2, 1)), head, jnp.array([[0, 1]]), temperature=1.0, num_tokens=2
    )
    np.testing.assert_allclose(logp, [[math.log(0.25), math.log(0.75)]], rtol=1e-6)
    by_hand = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    np.testing.assert_allclose(entropy, [[by_hand, by_hand]], rtol=1e-6)
    # at temperature 1/2 the probabilities are 1/10 and 9/10
    logp, _ = token_logprobs(
        jnp.ones((1, 2, 1)), head, jnp.array([[0, 1]]), temperature=0.5, num_tokens=2
    )
    np.testing.assert_allclose(logp, [[math.log(0.1), math.log(0.9)]], rtol=1e-6)


def test_unknown_ids_have_probability_zero(inputs):
    hidden, head, _ = inputs
    head = head.at[:, 33:].set(50.0 * jnp.sign(hidden[0, 0])[:, None])  # the largest logits
    targets = jnp.full((ROWS, LENGTH), 33)
    logp, _ = token_logprobs(hidden, head, targets, temperature=1.0, num_tokens=33)
    np.testing.assert_array_equal(jnp.exp(logp), 0.0)
    assert np.isfinite(logp).all()
    logits = mask_unknown_ids(hidden @ head, 33)
    probabilities = jax.nn.softmax(logits, axis=-1)
    np.testing.assert_array_equal(probabilities[..., 33:], 0.0)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)


def test_entropy_runs_from_zero_to_the_logarithm_of_the_known_ids():
    head = jnp.array([[0.0] * VOCAB, [80.0] + [0.0] * (VOCAB - 1)])
    hidden = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    logp, entropy = token_logprobs(
        hidden, head, jnp.zeros((1, 2), jnp.int32), temperature=1.0, num_tokens=25
    )
    np.testing.assert_allclose(entropy, [[math.log(25), 0.0]], atol=1e-5)
    np.testing.assert_allclose(logp, [[-math.log(25), 0.0]], atol=1e-5)


def test_entropies_of_large_logits_stay_exact_and_positive():
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(1, 64, 16)), jnp.float32)
    head = jnp.asarray(8.0 * rng.normal(size=(16, 512)), jnp.float32)
    targets = jnp.zeros((1, 64), jnp.int32)
    _, entropy = token_logprobs(hidden, head, targets, temperature=1.0, num_tokens=512)
    logits = np.asarray(hidden @ head, np.float64)
    assert np.abs(logits).max() > 100
    logp = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    np.testing.assert_allclose(entropy, -np.sum(np.exp(logp) * logp, axis=-1), atol=3e-5)
    assert entropy.min() > -1e-6


def test_bfloat16_hidden_states_give_float32_log_probs(inputs):
    hidden, head, targets = inputs
    keywords = {"temperature": 1.0, "num_tokens": VOCAB}
    logp, _ = token_logprobs(hidden.astype(jnp.bfloat16), head, targets, **keywords)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, head)]
    assert logp.dtype == jnp.float32
    np.testing.assert_allclose(logp, plain(*rounded, targets, **keywords)[0], atol=1e-4)


def array_sizes(jaxpr):
    """Sizes of all arrays in a jaxpr, those of inner ones (scan, checkpoint) included."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield math.prod(getattr(variable.aval, "shape", ()))
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from array_sizes(inner)


def compiled_sizes(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)
    return [math.prod(int(n) for n in shape.split(",")) for shape in shapes]


@pytest.mark.parametrize("chunk_tokens", [3, 12])
def test_no_array_of_all_logits_exists(inputs, chunk_tokens):
    def loss(hidden, head):
        logp, entropy = token_logprobs(
            hidden, head, inputs[2], temperature=1.0, num_tokens=33, chunk_tokens=chunk_tokens
        )
        return jnp.sum(logp) + jnp.sum(entropy)

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    sizes = list(array_sizes(jax.make_jaxpr(gradient)(*inputs[:2]).jaxpr))
    assert chunk_tokens * VOCAB in sizes  # the walk sees the slices, so it goes inside
    largest = max(chunk_tokens, WIDTH) * VOCAB
    assert max(sizes) == largest
    assert max(compiled_sizes(gradient, *inputs[:2])) <= largest


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_scoring_and_its_gradient_hold_no_array_of_all_logits(remat):
    config = toy_config(vocab_size=1024)
    params = toy_params(config)
    rows, prompt, length = 2, 4, 12
    tokens = jnp.ones((rows, prompt + length), jnp.int32)
    mask = jnp.ones(tokens.shape, bool)

    def loss(params):
        logp, _ = score(
            config, params, tokens[:, :prompt], mask[:, :prompt], tokens[:, prompt:],
            mask[:, prompt:], temperature=1.0, chunk_tokens=6, remat=remat,
        )  # fmt: skip
        return jnp.sum(logp)

    everything = rows * length * config.vocab_size
    head = config.hidden_size * config.vocab_size
    sizes = list(array_sizes(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))
    assert head <= max(sizes) < everything
    assert max(compiled_sizes(jax.value_and_grad(loss), params)) < everything


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_norm_is_that_of_the_gradient_by_the_logits(inputs, chunk_tokens, temperature):
    hidden, head, targets = inputs
    keywords = {"temperature": temperature, "num_tokens": 33, "chunk_tokens": chunk_tokens}
    logp, entropy, norm = token_logprobs(*inputs, **keywords, with_gradient_norm=True)
    np.testing.assert_array_equal(logp, token_logprobs(*inputs, **keywords)[0])
    np.testing.assert_array_equal(entropy, token_logprobs(*inputs, **keywords)[1])
    assert norm.shape == logp.shape and norm.dtype == jnp.float32

    def minus_logp(logits, target):
        return -jax.nn.log_softmax(logits)[target]

    advantage = -1.7
    tempered = (hidden @ head)[..., :33] / temperature
    gradient = jax.vmap(jax.vmap(jax.grad(lambda z, y: advantage * minus_logp(z, y))))
    expected = jnp.linalg.norm(gradient(tempered, targets), axis=-1)
    np.testing.assert_allclose(abs(advantage) * norm, expected, rtol=1e-5)


def test_norms_by_hand():
    # probabilities 1/4 and 3/4: the gradient for the first id is (1/4 − 1, 3/4), of norm √(2·9/16)
    head = jnp.log(jnp.array([[1.0, 3.0, 1e30]]))
    *_, norm = token_logprobs(
        jnp.ones((1, 2, 1)),
        head,
        jnp.array([[0, 1]]),
        temperature=1.0,
        num_tokens=2,
        with_gradient_norm=True,
    )
    np.testing.assert_allclose(norm, [[0.75 * math.sqrt(2), 0.25 * math.sqrt(2)]], rtol=1e-6)


def test_norms_near_certainty_do_not_cancel():
    """Logits (g, 0, 0): for the first id the norm is √((2p)² + 2p²) = p·√6 with p = 1/(e^g + 2)."""
    gaps = np.array([5.0, 12.0, 20.0, 30.0])
    logits = np.stack([gaps, 0 * gaps, 0 * gaps], axis=-1).astype(np.float32)
    logp = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    small = 1.0 / (np.exp(gaps) + 2.0)
    first = gradient_norm(logp, jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(first, small * math.sqrt(6.0), rtol=1e-5)
    # where 1 − 2π_y + Σ_v π_v² is nothing but rounding
    p = np.exp(np.asarray(logp))
    naive = np.sqrt(np.maximum(1.0 - 2.0 * p[:, 0] + np.sum(p**2, axis=-1), 0.0))
    assert abs(naive[2] / (small[2] * math.sqrt(6.0)) - 1.0) > 0.5
    # certain of another id: (1, −1, 0), of norm √2
    second = gradient_norm(logp, jnp.ones(4, jnp.int32))
    np.testing.assert_allclose(second[2:], math.sqrt(2.0), rtol=1e-6)


def test_two_outputs_unless_asked(inputs):
    """Callers of two numbers get the program they had: the norm leaves no trace in it."""
    plain_call = functools.partial(token_logprobs, temperature=1.0, num_tokens=33)
    assert len(plain_call(*inputs)) == 2
    asked = functools.partial(plain_call, with_gradient_norm=True)
    assert "eq" in primitives(jax.make_jaxpr(asked)(*inputs).jaxpr)
    assert "eq" not in primitives(jax.make_jaxpr(plain_call)(*inputs).jaxpr)


def primitives(jaxpr):
    """Names of all primitives in a jaxpr, those of inner ones included."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


@pytest.mark.parametrize("chunk_tokens", [3, 12])
def test_norms_hold_no_array_of_all_logits(inputs, chunk_tokens):
    def call(hidden, head):
        return token_logprobs(
            hidden, head, inputs[2], temperature=1.0, num_tokens=33,
            chunk_tokens=chunk_tokens, with_gradient_norm=True,
        )  # fmt: skip

    largest = max(chunk_tokens, WIDTH) * VOCAB
    assert max(array_sizes(jax.make_jaxpr(call)(*inputs[:2]).jaxpr)) == largest
    assert max(compiled_sizes(call, *inputs[:2])) <= largest
