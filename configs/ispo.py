"""ISPO: GRPO on an outcome reward made dense by two signals of the policy's own probabilities.

R = R_o + λ1·(2R_o − 1)·IFD + λ2·R_token: how much the thinking supports the answer, and confidence (right
rollouts) or doubt (wrong ones) at the critical tokens, those both uncertain and moved by training.
Paper: Chen et al. 2026 (arXiv:2606.08815), Eq. 2–8, appendix A.2 (λ1 = 0.5, λ2 = 0.1, clip [0.8, 1.28],
no KL, AdamW 1e-6, G = 8, batch 512).

Departures: on the embedded model λ1 = 0.1, λ2 = 0.02, because its IFD is 1 to 5 nats per token where
the paper's is 0 to 0.4; and `std_floor = "outcome"`: the group's σ is not allowed under the smallest σ that
a mixed group of outcomes can have. Literally (configs/ispo_literal.py), the z-score divides the dense terms
of a group whose outcomes all agree by their own spread, so that λ cancels there. On other models this file
is the paper's, but for completions of at most 3072 tokens (with the prompt, Qwen2.5-Math has 4096 positions).

    python -m jaxrl_reason.train --config=configs/ispo.py:model=tiny,task=arithmetic --workdir=runs/ispo

Expect on the embedded model: greedy Pass@1 on 256 held-out problems from 0.34 to above 0.95 in 60 steps,
thinking from 3 in 10 rollouts to nearly all; about 3 minutes on 2 CPU cores.
"""

from configs import common


def get_config(arg=None):
    config = common.train(arg, "ispo")
    if config.model.path == "tiny":
        config.algorithm.std_floor = "outcome"
        config.ispo.lambda1 = 0.1
        config.ispo.lambda2 = 0.02
    return config
