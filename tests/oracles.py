"""Slow references in float64: one loop per index of the equations, nothing shared with the package.

Arrays are [B], [B,T] with the G rollouts of a prompt adjacent; rows without tokens are allowed.
"""

import math

import numpy as np


def ragged_batch(seed: int, prompts: int = 3, size: int = 4, length: int = 9):
    """Numbers of [B], [B,T] and a mask of ragged rows: a full one, an empty one, one of a single token."""
    rng = np.random.default_rng(seed)
    rows = prompts * size
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    lengths = rng.integers(1, length + 1, rows)
    lengths[:3] = length, 0, 1
    logp = -np.abs(draw(rows, length)) - 0.1
    return {
        "reward": draw(rows),
        "correct": rng.integers(0, 2, rows).astype(np.float32),
        "logp": logp,
        "logp_ref": logp + 0.3 * draw(rows, length),
        "entropy": np.abs(draw(rows, length)),
        "mask": np.arange(length) < lengths[:, None],
    }


def groups(rows: int, size: int):
    return [range(start, start + size) for start in range(0, rows, size)]


def mean_std(values, ddof: int = 1):
    """(mean, standard deviation) in two passes; σ is 0 for at most `ddof` values."""
    mean = sum(values) / len(values) if values else 0.0
    squares = sum((v - mean) ** 2 for v in values)
    return mean, math.sqrt(squares / (len(values) - ddof)) if len(values) > ddof else 0.0


def z_scores(values):
    """(x − mean)/σ; all 0 for one value, or σ under 1e-6·max(1, max|x|)."""
    mean, sigma = mean_std(values)
    if len(values) < 2 or sigma < 1e-6 * max(1.0, max(abs(v) for v in values)):
        return [0.0] * len(values)
    return [(v - mean) / sigma for v in values]


def valid(mask, rows):
    """(i, t) of every valid token of these rows."""
    return [(i, t) for i in rows for t in range(len(mask[i])) if mask[i][t]]


def scatter(shape, places, values):
    out = np.zeros(shape)
    for place, value in zip(places, values, strict=True):
        out[place] = value
    return out


def leave_one_out(reward, size):
    """r_i less the mean of the other G−1."""
    out = np.zeros(len(reward))
    for group in groups(len(reward), size):
        values = [float(reward[i]) for i in group]
        _, sigma = mean_std(values)
        if size == 1 or sigma < 1e-6 * max(1.0, max(abs(v) for v in values)):
            continue
        for i in group:
            others = [float(reward[j]) for j in group if j != i]
            out[i] = float(reward[i]) - sum(others) / len(others)
    return out


def surrogate(
    logp, logp_old, advantages, mask, low, high, loss_type, longest=None, level="token", c=0.0,
    beta=0.0, logp_ref=None, entropy=None, entropy_coef=0.0,
):  # fmt: skip
    """The loss, and its gradient in log π from the definition of each branch."""
    advantages = np.asarray(advantages, np.float64)
    if advantages.ndim == 1:
        advantages = np.repeat(advantages[:, None], len(mask[0]), axis=1)
    rows = [i for i in range(len(mask)) if any(mask[i])]
    tokens = len(valid(mask, rows))
    loss, gradient = 0.0, np.zeros(np.shape(logp))
    for i in rows:
        places = [t for t in range(len(mask[i])) if mask[i][t]]
        log_ratio = {t: float(logp[i][t]) - float(logp_old[i][t]) for t in places}
        mean = sum(log_ratio.values()) / len(places)
        weight = {
            "sequence_mean": 1 / (len(rows) * len(places)),
            "token_mean": 1 / tokens,
            "constant": 1 / (len(rows) * longest) if longest else None,
        }[loss_type]
        for t in places:
            ratio = math.exp(mean if level == "sequence" else log_ratio[t])
            a = advantages[i, t]
            clipped = min(max(ratio, 1 - low), 1 + high)
            objective, slope = ratio * a, ratio * a  # d ratio / d log π = ratio
            if clipped * a < objective:
                objective, slope = clipped * a, 0.0
            if c and a < 0 and objective < c * a:
                objective, slope = c * a, 0.0
            term, slope = -objective, -slope
            if beta:
                d = float(logp_ref[i][t]) - float(logp[i][t])
                term += beta * (math.exp(d) - d - 1)
                slope += beta * (1 - math.exp(d))
            if entropy_coef:
                term -= entropy_coef * float(entropy[i][t])
            loss += weight * term
            gradient[i, t] = weight * slope
    return loss, gradient


def bucket(t: int, length: int, num_buckets: int) -> int:
    """Of the t-th of `length` tokens, t counted from 1."""
    return min(t * num_buckets // length, num_buckets - 1)


def erpo(
    advantages, entropy, logp, logp_ref, mask, size,
    beta_progress=0.1, gamma=5.0, num_buckets=10, eta=0.2, sigma_target=1.0, delta=1e-4,
):  # fmt: skip
    out = np.zeros(np.shape(mask))
    for group in groups(len(advantages), size):
        places = valid(mask, group)
        if not places:
            continue
        mean, sigma = mean_std([float(entropy[p]) for p in places])
        gate = {
            p: 1 / (1 + math.exp(-gamma * (float(entropy[p]) - mean) / (sigma + delta)))
            for p in places
        }
        progress = {p: beta_progress * (float(logp[p]) - float(logp_ref[p])) for p in places}
        buckets = {}
        for i in group:
            own = [p for p in places if p[0] == i]
            for t, p in enumerate(own, start=1):
                buckets.setdefault(bucket(t, len(own), num_buckets), []).append(p)
        relative = {}
        for members in buckets.values():
            mean, sigma = mean_std([progress[p] for p in members])
            dead = len(members) < 2 or sigma < 1e-5
            for p in members:
                relative[p] = 0.0 if dead else (progress[p] - mean) / (sigma + delta)
        sign = {
            p: 0.0 if abs(advantages[p[0]]) <= 1e-9 else np.sign(advantages[p[0]]) for p in places
        }
        psi = {p: gate[p] * sign[p] * relative[p] for p in places}
        active = [psi[p] for p in places if sign[p]]
        scale = sigma_target / (mean_std(active)[1] + delta) if len(active) >= 2 else 0.0
        final = [float(advantages[p[0]]) + eta * scale * psi[p] for p in places]
        out += scatter(out.shape, places, z_scores(final))
    return out


def shaped(correct, values, members, alpha1, alpha2):
    """GTPO's reward of each member: α1 + α2·n·x/Σx over the right ones, −α1 − α2·n·x⁻¹/Σx⁻¹ over the wrong."""
    out = {}
    for outcome in (True, False):
        peers = [m for m in members if bool(correct[m]) == outcome]
        power = 1 if outcome else -1
        share = {m: max(values[m], 1e-6) ** power for m in peers}
        for m in peers:
            dense = alpha1 + alpha2 * len(peers) * share[m] / sum(share.values())
            out[m] = dense if outcome else -dense
    return out


def z_by_outcome(correct, rewards, row_of, separate):
    """z-scores over all keys of `rewards`, or apart for right and wrong rows."""
    parts = [[k for k in rewards if bool(correct[row_of(k)]) == o] for o in (True, False)]
    out = {}
    for part in parts if separate else [list(rewards)]:
        out |= dict(zip(part, z_scores([rewards[k] for k in part]), strict=True))
    return out


def gtpo(correct, entropy, mask, size, alpha1=1.0, alpha2=0.1, separate=False):
    out = np.zeros(np.shape(mask))
    for group in groups(len(correct), size):
        rewards = {}
        for t in range(len(mask[0])):
            alive = [i for i in group if mask[i][t]]
            values = {i: float(entropy[i][t]) for i in alive}
            at_t = shaped(correct, values, alive, alpha1, alpha2)
            rewards |= {(i, t): reward for i, reward in at_t.items()}
        for place, value in z_by_outcome(correct, rewards, lambda p: p[0], separate).items():
            out[place] = value
    return out


def grpo_s(correct, entropy, mask, size, alpha1=1.0, alpha2=0.1, separate=False):
    """Rows without tokens have no part in it and get 0."""
    out = np.zeros(len(correct))
    for group in groups(len(correct), size):
        members = [i for i in group if any(mask[i])]
        values = {i: mean_std([float(entropy[p]) for p in valid(mask, [i])])[0] for i in members}
        rewards = shaped(correct, values, members, alpha1, alpha2)
        for i, value in z_by_outcome(correct, rewards, lambda i: i, separate).items():
            out[i] = value
    return out


def pacr(
    advantages, gold_logp, num_steps, step_of_token, mask, size,
    gamma=1.0, outcome_weight=1.0, progress_weight=0.5,
):  # fmt: skip
    out = np.zeros(np.shape(mask))
    for group in groups(len(advantages), size):
        returns = {}
        for i in [i for i in group if any(mask[i])]:
            n, c = num_steps[i], [float(x) for x in gold_logp[i]]
            gain = [c[k] - c[k - 1] for k in range(1, n + 1)]
            for k in range(n):
                returns[i, k] = sum(gamma ** (t - k) * gain[t] for t in range(k, n))
        low, high = (f(returns.values(), default=0.0) for f in (min, max))
        scaled = {
            key: (g - low) / (high - low) if high > low else 0.0 for key, g in returns.items()
        }
        mean = sum(scaled.values()) / max(len(scaled), 1)
        for i, t in valid(mask, group):
            progress = scaled[i, int(step_of_token[i][t])] - mean if num_steps[i] else 0.0
            out[i, t] = outcome_weight * float(advantages[i]) + progress_weight * progress
    return out


def low_probability_confidence(logp, mask, fraction=0.2):
    """`fraction` in percent steps, so that ⌈·⌉ is one of integers."""
    out = np.zeros(len(mask))
    for i in range(len(mask)):
        values = sorted(float(logp[p]) for p in valid(mask, [i]))
        if values:
            count = -(-len(values) * round(fraction * 100) // 100)
            out[i] = math.exp(sum(values[:count]) / count)
    return out


def progrpo(advantages, reward, prompt_confidence, confidence, size, alpha=0.3):
    out = np.asarray(advantages, np.float64).copy()
    for group in groups(len(out), size):
        if sum(float(reward[i]) for i in group) > 0:
            for i in group:
                out[i] += alpha * (float(prompt_confidence[i]) - float(confidence[i]))
    return out


def high_entropy_tokens(entropy, mask, fraction=0.2):
    """The ⌈fraction·N⌉ tokens of largest entropy of the whole batch, ties to the earlier."""
    places = valid(mask, range(len(mask)))
    count = -(-len(places) * round(fraction * 100) // 100)
    chosen = sorted(places, key=lambda p: -float(entropy[p]))[:count]  # stable
    return scatter(np.shape(mask), chosen, [1] * count).astype(bool)


def entropy_weights(entropy, mask):
    """Mean entropy of each row with tokens over the mean of those; all 0: 1. Other rows: 0."""
    rows = [i for i in range(len(mask)) if any(mask[i])]
    means = {i: mean_std([float(entropy[p]) for p in valid(mask, [i])])[0] for i in rows}
    total = sum(means.values()) / max(len(rows), 1)
    weights = {i: means[i] / total if total else 1.0 for i in rows}
    return np.array([weights.get(i, 0.0) for i in range(len(mask))])


def weakest_hints(successes):
    """(level, rollout) of the first success of each problem by rising level; (−1, −1) without one."""
    levels, problems, rollouts = np.shape(successes)
    out = np.full((problems, 2), -1)
    for p in range(problems):
        hits = [(lv, g) for lv in range(levels) for g in range(rollouts) if successes[lv][p][g]]
        if hits:
            out[p] = hits[0]
    return out
