"""Scaf-GRPO: groups that are all wrong are tried again with hints, the weakest first.

After a warm-up every all-wrong group is sampled again with the first hint of its problem, then with
the second, up to `scaf.max_hints`. The first right rollout of the weakest hint that brings one
takes the place of the group's last rollout, so the group has a gradient again. The rest is GRPO.
Paper: Zhang et al. 2025 (arXiv:2510.19807), as interpreted.

Departures: the warm-up of 10 steps, three levels and G tries a level are ours. A replaced rollout
keeps the hinted prompt it was sampled from, and its ratio is taken there. Hints come with the data
(`hints`, a list of texts a problem). The embedded model cannot read a hint, so there it replaces
the problem: what is left to compute after one operation, after two.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0), as GRPO: after
the warm-up only three groups of the whole run are all wrong and have hints, and two rollouts are
replaced. From starts that fail more it has more to do.

    python -m jaxrl_reason.train --config=configs/scaf_grpo.py:model=tiny,task=arithmetic --workdir=runs/scaf_grpo
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "scaf_grpo")
    if config.model.path == "tiny":
        config.scaf.template = "Compute {hint}."
    return config
