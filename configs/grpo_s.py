"""GRPO-S: GTPO with each rollout's mean entropy, one advantage a rollout.

Right rollouts earn more the more uncertain they were on average, wrong ones lose more the more certain they
were. The z-score is that of GRPO, over the group's rollouts. Groups whose outcomes agree have gradient
too, from the entropy term alone.
Paper: Tan et al. 2025 (arXiv:2508.04349), as interpreted.

Departures: as for configs/gtpo.py; section `gtpo` holds the weights of both.

Expect on the embedded model: EXPECT_grpo_s

    python -m jaxrl_reason.train --config=configs/grpo_s.py:model=tiny,task=arithmetic --workdir=runs/grpo_s
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "grpo_s")
