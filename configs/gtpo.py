"""GTPO: right rollouts earn more at uncertain tokens, wrong ones lose more at confident tokens.

Every token has a reward of its own: α1 for a right rollout plus α2 times its entropy relative to
the mean of the group's right rollouts at that position; for a wrong one the negative, with inverse
entropies. One z-score over the group's tokens makes advantages of them. Groups whose outcomes agree
have gradient too, from the entropy term alone.
Paper: Tan et al. 2025 (arXiv:2508.04349), as interpreted.

Departures: α1 = 1 and α2 = 0.1, the mean over all tokens, and one z-score for the whole group are
ours; `gtpo.separate` takes one per outcome, as a public version does, and then α1 and with it the
outcome cancel.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0), as GRPO.

    python -m jaxrl_reason.train --config=configs/gtpo.py:model=tiny,task=arithmetic --workdir=runs/gtpo
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "gtpo")
    config.algorithm.loss_type = "token_mean"
    return config
