"""DAPO: GRPO that trains on mixed groups only, averages over tokens, and clips the upper side later.

Groups that are all right or all wrong are thrown away and further prompts drawn, up to
`max_resample` times, until the batch is full (`sampling/generated_prompts`,
`sampling/kept_prompts`). The loss is the mean over all tokens of an optimiser step, so long answers
count in full. Outcomes are 1 and -1, and an answer that runs into the last fifth of its budget
loses up to 1 (`overlong_cache`).
Paper: Yu et al. 2025 (arXiv:2503.14476).

Departures: when `max_resample` draws do not fill the batch, the step goes on with what there is and
says so; the paper draws on. One optimiser step a batch instead of sixteen, as in ISPO's comparison.
`accuracy` and `zero_advantage/...` are those of everything sampled, `reward` and `entropy` of what
is trained on.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.997 (three seeds) in 60 steps, the
fastest in steps (accuracy over the run 0.912, GRPO 0.896), at 3.6 times the rollouts: once nearly
every group is solved, four draws fill less than half of the batch.

    python -m jaxrl_reason.train --config=configs/dapo.py:model=tiny,task=arithmetic --workdir=runs/dapo
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "dapo")
    config.algorithm.reward_wrong = -1.0
    config.algorithm.overlong_cache = max(config.rollout.max_completion_length // 5, 1)
    return config
