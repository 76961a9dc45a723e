"""RLOO: each rollout is compared with the mean of the group's other rollouts.

The advantage is the reward less the mean of the other G - 1, an unbiased baseline; it is G/(G - 1)
times Dr.GRPO's. There is no division by the standard deviation. The loss is the mean over rollouts
of token means.
Paper: Ahmadian et al. 2024 (arXiv:2402.14740).

Departures: the clipped surrogate, as everywhere here; with one optimiser step a batch nothing
clips, and it is the paper's REINFORCE up to a factor 1/length of each rollout, which the mean over
tokens brings. No KL penalty in the reward (`algorithm.beta_reward` adds one).

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0), as GRPO.

    python -m jaxrl_reason.train --config=configs/rloo.py:model=tiny,task=arithmetic --workdir=runs/rloo
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "rloo")
    config.algorithm.epsilon_high = 0.2
    return config
