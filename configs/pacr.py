"""PACR (dense): steps of the thinking after which the reference answer is more likely are favoured.

The response is cut into steps; after each the log-prob of the reference answer is read off the
policy. A step's credit is the growth from there on, scaled to [0, 1] over the group and centred. It
is added with weight 0.5 to Dr.GRPO's advantage on the step's tokens.
Paper: Yoon et al. 2025 (arXiv:2510.22255), as interpreted.

Departures: the weights and gamma are ours. At most `pacr.max_steps` steps (16) are told apart, what
follows joins the last; each costs a scoring pass over prompt, steps and answer. The reference
answer is written in its place (a box) after the steps; what stands from the answer's opening on
belongs to the last step. On the embedded model a step is a line.

Expect on the embedded model: greedy Pass@1 from 0.34 to 0.996 in 60 steps (seed 0), a little faster
than GRPO (accuracy over the run 0.903 against 0.896).

    python -m jaxrl_reason.train --config=configs/pacr.py:model=tiny,task=arithmetic --workdir=runs/pacr
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "pacr")
    config.algorithm.epsilon_high = 0.2
    if config.model.path == "tiny":
        config.pacr.step_end = "\n"
        config.pacr.max_steps = 4
    else:  # room for the reference answer after a whole response
        config.rollout.max_completion_length -= 128
    return config
