import jax.numpy as jnp
import numpy as np

from jaxrl_reason.model import forward
from jaxrl_reason.signals.prompt import perplexity, score_prompts
from tests.toys import random_rows, toy_config, toy_params


def test_equals_the_log_softmax_of_the_logits():
    config = toy_config()
    params = toy_params(config)
    rng = np.random.default_rng(0)
    tokens, mask = random_rows(rng, [1, 4, 6], 6, 32, "left")
    logp, scored = score_prompts(config, params, tokens, mask, temperature=0.7)
    for row in range(3):
        own = tokens[row][mask[row]]
        logits = np.asarray(
            forward(config, params, own[None], jnp.ones((1, len(own)), bool))[0], np.float64
        )
        logits = logits[:, : config.num_tokens] / 0.7
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = [expected[t - 1, own[t]] for t in range(1, len(own))]
        np.testing.assert_array_equal(np.asarray(scored[row]).sum(), len(own) - 1)
        np.testing.assert_allclose(logp[row][np.asarray(scored[row])], expected, atol=2e-5)
    assert not np.asarray(logp)[~np.asarray(scored)].any()


def test_perplexity_by_hand():
    logp = np.log(np.array([[0.5, 0.125, 9.0], [1.0, 1.0, 1.0]]))
    mask = np.array([[True, True, False], [False] * 3])
    np.testing.assert_allclose(perplexity(logp, mask), [4.0, 1.0])  # √(2·8) = 4; no token: 1
