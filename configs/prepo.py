"""PREPO: prompts go from familiar to strange during training, and uncertain rollouts weigh more.

For every prompt trained on `prepo.candidates` are drawn and ordered by their perplexity under the
policy; the window that is taken moves from the lowest to the highest over the run. A rollout's
advantage is multiplied by its mean entropy over the batch's mean. The rest is GRPO.
Paper: Sun et al. 2025 (arXiv:2511.00794), as interpreted.

Departures: four candidates a prompt are ours (`sampling/candidate_prompts`); those outside the
window are not trained on in this epoch. Candidates cost a short forward pass, not rollouts;
`num_steps` is part of the schedule and cannot change when a run is continued.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0). Its training
accuracy is not comparable: it begins with easy prompts and ends with long ones.

    python -m jaxrl_reason.train --config=configs/prepo.py:model=tiny,task=arithmetic --workdir=runs/prepo
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "prepo")
