"""ISPO exactly as published: λ1 = 0.5, λ2 = 0.1, no floor under the group's standard deviation.

For other models than the embedded one this is what configs/ispo.py gives. On the embedded model the
README says what came of it.
Paper: Chen et al. 2026 (arXiv:2606.08815), Eq. 2–8, appendix A.2.

    python -m jaxrl_reason.train --config=configs/ispo_literal.py:model=tiny,task=arithmetic \\
        --workdir=runs/ispo_literal
"""

from configs import common


def get_config(arg=None):
    return common.train(arg, "ispo")
