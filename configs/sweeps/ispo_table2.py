"""ISPO's component ablation (its Table 2): which signal, which tokens, which direction.

`part` picks a block, a, b or c; without it all three, where ISPO itself is run once. The paper's table,
Qwen2.5-Math-7B, average Pass@1 of five benchmarks:

    (a) grpo 44.1   +ifd 49.8    +token 47.6   ispo 55.4           +ifd is λ2 = 0, +token is λ1 = 0
    (b) entropy 52.1   drift 50.5   union 53.6   ispo (intersection) 55.4   the set of critical tokens
    (c) symmetric 48.0   beta=0 51.7   ispo 55.4        the reward of wrong rollouts; β = 0: no hinge

Its λ1 = 0 is 47.6 here, 47.0 in Table 7 and 48.8 in that table's text. Each row is configs/ispo.py with
one change; so on the embedded model λ and the floor under the standard deviation are that file's.

    python -m jaxrl_reason.sweep --sweep=configs/sweeps/ispo_table2.py:part=a --workdir=runs/sweeps/table2a
"""

from configs.sweeps import arguments

PARTS = "abc"


def get_sweep(arg=None):
    own, shared = arguments.read(arg, part=PARTS)
    if not own["part"] or not set(own["part"]) <= set(PARTS):
        raise ValueError(f"sweep argument part={own['part']!r}: expected some of {PARTS!r}")
    ispo = f"configs/ispo.py:{shared}"
    blocks = {
        "(a) signal components": {
            "grpo": (f"configs/grpo.py:{shared}", {}),
            "+ifd": (ispo, {"ispo.lambda2": 0.0}),
            "+token": (ispo, {"ispo.lambda1": 0.0}),
            "ispo": (ispo, {}),
        },
        "(b) critical token selection": {
            "entropy": (ispo, {"ispo.critical": "entropy"}),
            "drift": (ispo, {"ispo.critical": "drift"}),
            "union": (ispo, {"ispo.critical": "union"}),
            "ispo": (ispo, {}),
        },
        "(c) directional shaping": {
            "symmetric": (ispo, {"ispo.symmetric": True}),
            "beta=0": (ispo, {"ispo.beta": 0.0}),
            "ispo": (ispo, {}),
        },
    }
    return {title: rows for title, rows in blocks.items() if title[1] in own["part"]}
