"""Tiny models for the tests, and running a test's function in a process with 8 virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_reason.model import ModelConfig
from jaxrl_reason.model.decoder import abstract_params

REPOSITORY = Path(__file__).resolve().parents[1]
EMBEDDED = REPOSITORY / "jaxrl_reason" / "embedded" / "tiny"


def toy_config(**changes) -> ModelConfig:
    """A decoder of two layers whose sizes all divide by 2; id 1 ends a completion."""
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "rope_theta": 1e4,
        "eos_token_ids": (1,),
    }
    return ModelConfig(**(sizes | changes))


def toy_params(config: ModelConfig, seed: int = 0, scale: float = 0.3):
    """Random parameters: wide matrices (so that outputs differ clearly), non-zero biases, uneven norms."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten_with_path(abstract_params(config))

    def noise(path, leaf):
        draw = rng.normal(size=leaf.shape).astype(np.float32)
        return jnp.asarray(1 + 0.2 * draw if path[-1].key == "scale" else scale * draw)

    return jax.tree.unflatten(tree, [noise(path, leaf) for path, leaf in leaves])


def random_rows(rng, lengths, total, vocab_size, side):
    """Ids [B,total] with `lengths` of them valid, padded on the `side` with random ids; and the mask."""
    tokens = rng.integers(0, vocab_size, (len(lengths), total)).astype(np.int32)
    place, lengths = np.arange(total)[None], np.asarray(lengths)[:, None]
    return tokens, place >= total - lengths if side == "left" else place < lengths


def on_virtual_devices(function, *args: str, count: int = 8) -> str:
    """Run a module's function with string arguments in a process of its own; returns what it prints."""
    code = f"import {function.__module__} as m, sys; m.{function.__name__}(*sys.argv[1:])"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
