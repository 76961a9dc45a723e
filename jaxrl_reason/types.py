"""The pytrees that travel through one step.

Axes: P prompts, G rollouts of one prompt, B = P·G rollouts (the G of a prompt adjacent), S prompt
positions (left-padded), T response positions (right-padded), K answer positions.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """A batch of problems ready to sample from. `keys` seed the rollouts of each prompt."""

    tokens: Int[Array | np.ndarray, "P S"]
    mask: Bool[Array | np.ndarray, "P S"]
    keys: UInt[Array | np.ndarray, " P"]
    problems: tuple[Any, ...] = dataclasses.field(default=(), metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Completions. `mask` is 1 up to and including the first end token; `logp` are the sampler's
    log-probs at the sampling temperature (0 where masked); `truncated`: no end token in T tokens."""

    tokens: Int[Array | np.ndarray, "B T"]
    mask: Bool[Array | np.ndarray, "B T"]
    logp: Float[Array | np.ndarray, "B T"]
    lengths: Int[Array | np.ndarray, " B"]
    truncated: Bool[Array | np.ndarray, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
    """What rewards and advantages may look at: stop-gradient numbers, float32, nats.

    `logp`, `entropy`: the policy that sampled, rescored by the learner. `logp_ref`: the frozen start
    policy. `answer_logp`, `answer_logp_ablated` [B,K]: log-probs of the answer tokens with and without
    the thinking before them, `answer_mask` [B,K] (no answer: an empty row). `prompt_logp` [P,S]: the
    prompts' own tokens, `prompt_mask` where they have one. `gold_logp` [B,N+1]: log-prob of the reference
    answer after 0 … `num_steps` steps of the thinking, `step_of_token` the step of each token (from 0).
    Fields a recipe does not need are None. A row without tokens is a blank: resampling could not fill it.
    """

    mask: Bool[Array, "B T"]
    correct: Float[Array, " B"]
    logp: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    logp_sampler: Float[Array, "B T"]
    truncated: Bool[Array, " B"]
    logp_ref: Float[Array, "B T"] | None = None
    answer_logp: Float[Array, "B K"] | None = None
    answer_logp_ablated: Float[Array, "B K"] | None = None
    answer_mask: Bool[Array, "B K"] | None = None
    prompt_logp: Float[Array, "P S"] | None = None
    prompt_mask: Bool[Array, "P S"] | None = None
    gold_logp: Float[Array, "B N1"] | None = None
    num_steps: Int[Array, " B"] | None = None
    step_of_token: Int[Array, "B T"] | None = None

    @property
    def present(self) -> Bool[Array, " B"]:
        """Rows that stand for a rollout."""
        return self.mask.any(axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Float32 master parameters, optimiser state, and the counters of skipped updates."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
