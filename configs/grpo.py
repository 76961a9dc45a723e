"""GRPO: the group-relative baseline with a binary outcome reward and the clipped surrogate.

Each prompt gets G rollouts, a rollout's advantage is its z-scored outcome within the group, and every
token of the rollout shares it. Groups whose outcomes agree give no gradient.
Paper: Shao et al. 2024 (arXiv:2402.03300), with ISPO's settings: clip range [0.8, 1.28], no KL.

Departures: none in the objective; the standard deviation has ddof 1 and eps 1e-6 (`advantage_preset`).

Expect on the embedded model what configs/ispo.py says; the README has both side by side.

    python -m jaxrl_reason.train --config=configs/grpo.py:model=tiny,task=arithmetic --workdir=runs/grpo
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "grpo")
