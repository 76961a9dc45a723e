"""GTPO: right rollouts earn more at uncertain tokens, wrong ones lose more at confident tokens.

Every token has a reward of its own: alpha1 for a right rollout plus alpha2 times its share of the entropy
at that position among the group's right rollouts; for a wrong one the negative, with shares of inverse
entropy. One z-score over the group's tokens makes advantages of them. Groups whose outcomes agree have
gradient too, from the entropy term alone.
Paper: Tan et al. 2025 (arXiv:2508.04349), as interpreted.

Departures: one z-score for the whole group; `gtpo.separate` takes one per outcome, as a public version does,
and then alpha1 and with it the outcome cancel.

Expect on the embedded model: EXPECT_gtpo

    python -m jaxrl_reason.train --config=configs/gtpo.py:model=tiny,task=arithmetic --workdir=runs/gtpo
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "gtpo")
    config.algorithm.loss_type = "token_mean"
    return config
