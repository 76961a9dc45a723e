"""What the ISPO paper plots, computed from the signals of every step, as (sum, count) pairs.

Figure and table numbers are those of arXiv:2606.08815. Means over nothing have count 0 and become null.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_reason import masked
from jaxrl_reason.advantages import group
from jaxrl_reason.rewards import ispo
from jaxrl_reason.types import Signals

IFD_EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def mean_pair(x: Array, where=None) -> tuple:
    """(sum, count) of the selected values."""
    x = jnp.asarray(x, jnp.float32)
    where = jnp.ones(x.shape, bool) if where is None else where.astype(bool)
    return masked.masked_sum(x, where), jnp.sum(where.astype(jnp.float32))


def completion_metrics(
    lengths: Int[Array, " B"],
    truncated: Bool[Array, " B"],
    correct: Float[Array, " B"],
    has_format: Bool[Array, " B"],
    thinking: Bool[Array, " B"],
    num_generations: int,
) -> dict:
    """Outcomes and lengths of sampled completions, and groups whose outcomes agree (Fig. 4 left)."""
    lengths = jnp.asarray(lengths, jnp.float32)
    outcome = jnp.asarray(correct).reshape(-1, num_generations)
    all_correct, all_wrong = jnp.all(outcome > 0.5, axis=1), jnp.all(outcome < 0.5, axis=1)
    return {
        "accuracy": mean_pair(correct),
        "format_rate": mean_pair(has_format),
        "thinking_rate": mean_pair(thinking),
        "completions/mean_length": mean_pair(lengths),
        "completions/min_length": jnp.min(lengths),
        "completions/max_length": jnp.max(lengths),
        "completions/mean_terminated_length": mean_pair(lengths, ~jnp.asarray(truncated)),
        "completions/clipped_ratio": mean_pair(truncated),
        "zero_advantage/outcome": mean_pair(all_correct | all_wrong),
        "zero_advantage/all_correct": mean_pair(all_correct),
        "zero_advantage/all_wrong": mean_pair(all_wrong),
    }


def reward_metrics(signals: Signals, reward: Float[Array, " B"], num_generations: int) -> dict:
    """TRL's metrics of the rewards that are trained on; entropy, and the sampler's distance."""
    present = signals.present
    stats = group.group_stats(reward.reshape(-1, num_generations))
    filled = present.reshape(-1, num_generations).any(axis=1)[:, None]
    gap = jnp.abs(signals.logp - signals.logp_sampler)
    return {
        "reward": mean_pair(reward, present),
        "reward_std": mean_pair(jnp.where(stats.flat, 0.0, stats.std), filled),
        "frac_reward_zero_std": mean_pair(stats.flat, filled),
        "entropy": mean_pair(signals.entropy, signals.mask),
        "sampling/sampling_logp_difference/mean": mean_pair(gap, signals.mask),
        "sampling/sampling_logp_difference/max": jnp.max(jnp.where(signals.mask, gap, 0.0)),
    }


def advantage_metrics(
    signals: Signals, advantages: Float[Array, "B T"], num_generations: int
) -> dict:
    """Which rollouts and groups carry gradient (Table 3), and the share of Σ|Â| in same-outcome groups.

    `advantages` are those in the loss: 0 also at tokens that the loss leaves out.
    """
    all_correct, all_wrong = outcome_groups(signals, num_generations)
    size = jnp.abs(jnp.where(signals.mask, advantages, 0.0))
    per_rollout = jnp.max(size, axis=-1)
    # tokens weigh as in sequence_mean: a group's share of Σ|Â| over its rollouts
    weight = (
        masked.masked_mean(size, signals.mask, axis=-1).reshape(-1, num_generations).sum(axis=1)
    )
    filled = signals.present.reshape(-1, num_generations).any(axis=1)
    total = jnp.sum(weight)
    share = lambda chosen: (masked.masked_sum(weight, chosen), total)  # noqa: E731
    return {
        "useful_rollouts": mean_pair(per_rollout > 0, signals.present),
        "zero_advantage/gradient": mean_pair(weight == 0, filled),
        "ispo/same_outcome_advantage_share": share(all_correct | all_wrong),
        "ispo/same_outcome_advantage_share/all_correct": share(all_correct),
        "ispo/same_outcome_advantage_share/all_wrong": share(all_wrong),
    }


def outcome_groups(
    signals: Signals, num_generations: int
) -> tuple[Bool[Array, " P"], Bool[Array, " P"]]:
    """Groups that are all correct, and all wrong; a blank group is neither."""
    outcome = signals.correct.reshape(-1, num_generations)
    filled = signals.present.reshape(-1, num_generations).any(axis=1)
    return jnp.all(outcome > 0.5, axis=1) & filled, jnp.all(outcome < 0.5, axis=1) & filled


def token_metrics(signals: Signals, terms: dict, section) -> dict:
    """Set sizes as a share of tokens (Table 5), entropy at critical tokens by outcome (Fig. 2c, 4).

    The critical set is the reward's own, or the intersection where the reward has none (GRPO). What
    needs π_0 is left out where it was not computed.
    """
    right = (signals.correct > 0.5)[:, None]
    uncertain = ispo.uncertain_tokens(signals.entropy, signals.mask, section.top_fraction)
    sets, critical = {"uncertain": uncertain}, terms.get("critical")
    metrics = {}
    if signals.logp_ref is not None:
        sets["drift"] = ispo.drifted_tokens(
            signals.logp, signals.logp_ref, signals.mask, section.drift_threshold
        )
        critical = uncertain & sets["drift"] if critical is None else critical
        metrics["ispo/kl_ref"] = mean_pair(signals.logp - signals.logp_ref, signals.mask)
    if critical is not None:
        sets["critical"] = critical
    for name, chosen in sets.items():
        metrics[f"ispo/{name}_fraction"] = mean_pair(chosen, signals.mask)
        metrics[f"ispo/{name}_entropy/correct"] = mean_pair(signals.entropy, chosen & right)
        metrics[f"ispo/{name}_entropy/wrong"] = mean_pair(signals.entropy, chosen & ~right)
    return metrics


def ifd_metrics(signals: Signals, num_generations: int) -> dict:
    """IFD by outcome (Fig. 2a, 5), and its spread in groups whose outcomes agree (Obs. 1)."""
    ifd = ispo.conditional_ifd(
        signals.answer_logp, signals.answer_logp_ablated, signals.answer_mask
    )
    answered = jnp.any(signals.answer_mask, axis=-1)
    right = signals.correct > 0.5
    all_correct, all_wrong = outcome_groups(signals, num_generations)
    same = all_correct | all_wrong
    within = group.group_stats(ifd.reshape(-1, num_generations)).std[:, 0]
    edges = jnp.asarray(IFD_EDGES, jnp.float32)
    bins = jnp.searchsorted(edges, ifd)  # 0: below the first edge … len: above the last
    metrics = {"ispo/ifd_std_same_outcome": mean_pair(within, same)}
    for name, where in (("correct", right & answered), ("wrong", ~right & answered)):
        mean, count = mean_pair(ifd, where)
        spread = masked.masked_std(ifd, where, ddof=0)
        one_hot = (bins[:, None] == jnp.arange(len(IFD_EDGES) + 1)[None]) & where[:, None]
        metrics |= {
            f"ispo/ifd/{name}": (mean, count),
            f"ispo/ifd_std/{name}": (spread, jnp.sign(count)),
            f"ispo/ifd_histogram/{name}": (jnp.sum(one_hot.astype(jnp.float32), axis=0), 1.0),
        }
    return metrics


def composite_metrics(
    signals: Signals, reward: Float[Array, " B"], terms: dict, section, num_generations: int
) -> dict:
    """How the dense terms stand to the outcome, and the variance of the composite (Eq. 9).

    `dense_to_outcome`: within-group std of the dense terms over 1/√G, the smallest std a mixed group's
    outcome can have. `order_violations`: share of mixed groups in which some wrong rollout's reward is
    at least some right one's. The parts of Eq. 9 are means over groups whose outcomes agree; their cross
    term carries the sign (2R_o − 1), which the paper prints for all-correct groups only.
    """
    grouped = lambda x: x.reshape(-1, num_generations)  # noqa: E731
    outcome, total = grouped(signals.correct), grouped(reward)
    right = outcome > 0.5
    all_correct, all_wrong = outcome_groups(signals, num_generations)
    same = all_correct | all_wrong
    filled = signals.present.reshape(-1, num_generations).any(axis=1)
    lowest_right = jnp.min(jnp.where(right, total, jnp.inf), axis=1)
    highest_wrong = jnp.max(jnp.where(right, -jnp.inf, total), axis=1)
    ifd, token = grouped(terms["ifd"]), grouped(terms["token"])
    dense = section.lambda1 * (2.0 * outcome - 1.0) * ifd + section.lambda2 * token
    dense = group.group_stats(dense).std[:, 0]
    sign = 2.0 * outcome[:, :1] - 1.0
    degrees = max(num_generations - 1, 1)
    deviation = lambda x: x - jnp.mean(x, axis=1, keepdims=True)  # noqa: E731
    cross = jnp.sum(deviation(ifd) * deviation(token) * sign, axis=1) / degrees
    l1, l2 = section.lambda1, section.lambda2
    return {
        "ispo/ifd_term": mean_pair(
            l1 * (2.0 * signals.correct - 1.0) * terms["ifd"], signals.present
        ),
        "ispo/token_term": mean_pair(l2 * terms["token"], signals.present),
        "ispo/order_violations": mean_pair(highest_wrong >= lowest_right, filled & ~same),
        "ispo/dense_to_outcome": mean_pair(dense * math.sqrt(num_generations), filled),
        "ispo/variance/total": mean_pair(jnp.sum(deviation(total) ** 2, axis=1) / degrees, same),
        "ispo/variance/ifd": mean_pair(
            l1**2 * jnp.sum(deviation(ifd) ** 2, axis=1) / degrees, same
        ),
        "ispo/variance/token": mean_pair(
            l2**2 * jnp.sum(deviation(token) ** 2, axis=1) / degrees, same
        ),
        "ispo/variance/cross": mean_pair(2.0 * l1 * l2 * cross, same),
    }


def dense_warning(dense_to_outcome: float, lambda1: float, lambda2: float) -> str | None:
    """Advice when the dense terms rival the outcome inside groups; None when they do not."""
    if not dense_to_outcome > 0.5:
        return None
    scale = 0.2 / dense_to_outcome
    return (
        f"ispo/dense_to_outcome is {dense_to_outcome:.2f}: within groups the dense terms vary by "
        f"{dense_to_outcome:.0%} of the smallest outcome difference and can outweigh it. "
        f"ispo.lambda1={lambda1 * scale:.2g} (with ispo.lambda2={lambda2 * scale:.2g}) would bring it "
        "to about 0.2."
    )
