"""A tiny random policy, a batch for it, and its learner, for tests and for the programs they start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_reason import learner
from jaxrl_reason import mesh as mesh_lib
from jaxrl_reason.model import ModelConfig, init_params
from jaxrl_reason.model.decoder import abstract_params
from jaxrl_reason.objectives.surrogate import loss_weights, policy_loss

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    eos_token_ids=(30,),
    num_tokens=31,
)
COMPLETION = 6


def make_batch(loss_type: str, seed: int = 0) -> dict:
    """Eight rows with ragged prompts and completions, one of them empty; advantages per token."""
    rng = np.random.default_rng(seed)
    prompt_mask = np.arange(5) >= rng.integers(0, 4, 8)[:, None]
    lengths = rng.integers(1, COMPLETION + 1, 8)
    lengths[3] = 0
    mask = np.arange(COMPLETION) < lengths[:, None]
    ids = lambda m: np.where(m, rng.integers(0, 31, m.shape), 0).astype(np.int32)  # noqa: E731
    near_uniform = lambda: rng.normal(-3.4, 0.2, mask.shape).astype(np.float32)  # noqa: E731
    return {
        "prompt_tokens": ids(prompt_mask),
        "prompt_mask": prompt_mask,
        "tokens": ids(mask),
        "mask": mask,
        "logp_old": near_uniform(),
        "logp_ref": near_uniform(),
        "advantages": rng.normal(size=mask.shape).astype(np.float32),
        "weights": np.asarray(loss_weights(jnp.asarray(mask), loss_type, 2 * COMPLETION)),
    }


def loss_fn(logp, entropy, batch):
    return policy_loss(
        logp,
        batch["logp_old"],
        batch["advantages"],
        batch["mask"],
        epsilon_high=0.28,
        weights=batch["weights"],
        beta=0.05,
        logp_ref=batch["logp_ref"],
    )


def make_learner(mesh, optimizer=None):
    """(a function that makes the start state, the jitted update) on a mesh."""
    optimizer = optimizer or optax.sgd(1.0)
    shardings = learner.state_shardings(mesh, optimizer, abstract_params(CONFIG))
    params = jax.tree_util.tree_map_with_path(_larger, init_params(CONFIG, 0))

    def start():
        return learner.init_state(mesh, optimizer, jax.device_put(params, shardings.params))

    update = learner.make_update(
        CONFIG,
        optimizer,
        loss_fn,
        temperature=0.9,
        chunk_tokens=16,
        remat=False,
        state_sharding=shardings,
    )
    return start, update


def _larger(path, x):
    """Matrices of ordinary size for so narrow a model: at 0.02 nothing would depend on anything."""
    return np.asarray(x if "scale" in mesh_lib.path_name(path) else 10 * x)


def step(mesh, update, state, batch, micro_batch_size):
    """One update; state stays on the device, metrics come back."""
    batch = learner.split_micro(batch, micro_batch_size)
    state, metrics = update(state, mesh_lib.put_batch(mesh, batch, axis=1))
    return state, mesh_lib.fetch(metrics)
