"""ProGRPO: rollouts less confident than their prompt gain, over-confident ones lose.

The confidence of a text is the geometric mean probability of its least likely fifth of tokens. In
groups with some reward, alpha times prompt confidence less answer confidence is added to GRPO's
advantage. That keeps rare right answers alive.
Paper: Li et al. 2026 (arXiv:2602.05281), as interpreted.

Departures: alpha = 0.3 and the share of 20 % are as interpreted; prompt tokens include the
template's.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0), as GRPO; nearly
every group has a gradient.

    python -m jaxrl_reason.train --config=configs/progrpo.py:model=tiny,task=arithmetic --workdir=runs/progrpo
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "progrpo")
