"""GRPO-S: GTPO with each rollout's mean entropy, one advantage a rollout.

Right rollouts earn more the more uncertain they were on average, wrong ones lose more the more
certain they were. The z-score is that of GRPO, over the group's rollouts. Groups whose outcomes
agree have gradient too, from the entropy term alone.
Paper: Tan et al. 2025 (arXiv:2508.04349), as interpreted.

Departures: as for configs/gtpo.py; section `gtpo` holds the weights of both.

Expect on the embedded model: greedy Pass@1 from 0.34 to 1.00 in 60 steps (seed 0), slower than GRPO
on the way (accuracy over the run 0.875 against 0.896) and with the highest avg@8 at the end
(0.989).

    python -m jaxrl_reason.train --config=configs/grpo_s.py:model=tiny,task=arithmetic --workdir=runs/grpo_s
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "grpo_s")
