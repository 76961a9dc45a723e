"""Which prompts, rollouts and tokens are trained on: functions of recorded outcomes, no model needed.

Axes: P prompts, G rollouts of one, C candidate prompts, L levels of hints.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrl_reason import masked


def mixed_groups(num_correct: np.ndarray, num_generations: int) -> np.ndarray:
    """DAPO's dynamic sampling (arXiv:2503.14476, Eq. 11): which groups are neither all right nor all wrong.

    `num_correct` [P] counts right rollouts by the verifier alone; returns bool [P].
    """
    num_correct = np.asarray(num_correct)
    return (num_correct > 0) & (num_correct < num_generations)


def perplexity_window(perplexity: np.ndarray, num_keep: int, progress: float) -> np.ndarray:
    """PREPO (Sun et al. 2025, arXiv:2511.00794, as interpreted): the candidates [C] to train on, indices [num_keep].

    Candidates are ordered by prompt perplexity, ascending (ties: the earlier first); the window of
    `num_keep` starts at ⌊ρ·(C − num_keep)⌋, ρ = `progress` being the share of training done. So easy
    prompts come first. Raises ValueError for ρ outside [0, 1] or fewer candidates than `num_keep`.
    """
    perplexity = np.asarray(perplexity)
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: {progress} is not in [0, 1]")
    if not 1 <= num_keep <= len(perplexity):
        raise ValueError(f"num_keep: {num_keep} is not in 1..{len(perplexity)} candidates")
    order = np.argsort(perplexity, kind="stable")
    start = math.floor(progress * (len(perplexity) - num_keep) + 1e-9)  # 0.29·100 is 28.999…
    return order[start : start + num_keep]


def weakest_hints(successes: np.ndarray) -> np.ndarray:
    """Scaf-GRPO (Zhang et al. 2025, arXiv:2510.19807, as interpreted): per prompt (level, rollout).

    `successes` bool [L,P,G], levels from the weakest hint on, false where nothing was sampled. The first
    right rollout of the weakest level that has one; (−1, −1) where none has. Returns int [P,2].
    """
    successes = np.asarray(successes, bool)
    levels, prompts, generations = successes.shape
    flat = successes.transpose(1, 0, 2).reshape(prompts, levels * generations)
    found = flat.any(axis=1)
    first = flat.argmax(axis=1) if flat.shape[1] else np.zeros(prompts, int)
    pairs = np.stack([first // max(generations, 1), first % max(generations, 1)], axis=1)
    return np.where(found[:, None], pairs, -1)


def high_entropy_tokens(
    entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], fraction: float = 0.2
) -> Bool[Array, "B T"]:
    """The 80/20 rule (Wang et al. 2025, arXiv:2506.01939): the ⌈fraction·N⌉ most uncertain of N tokens.

    N counts the tokens of the whole optimiser batch; exact count, ties to the earlier (row by row).
    """
    flat = mask.astype(bool).reshape(1, -1)
    count = masked.ceil_fraction(jnp.sum(flat.astype(jnp.int32), axis=1), fraction)
    return masked.top_mask(entropy.reshape(1, -1), flat, count).reshape(mask.shape)
