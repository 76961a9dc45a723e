"""ISPO's sensitivity to its hyperparameters (its Table 7), one at a time around the default.

The default is run once and stands in every block. The paper's table, Qwen2.5-Math-7B, average Pass@1 of
five benchmarks (GRPO: 44.1):

    (a) λ1           0 47.0     0.1 51.6    0.5* 55.4    1.0 54.7   2.0 52.3
    (b) λ2           0 49.4     0.05 53.9   0.1* 55.4    0.3 54.2
    (c) top fraction 0.05 53.6  0.1* 55.4   0.15 54.8    0.2 53.3
    (d) τ_Δ          0.1 54.3   0.3* 55.4   0.5 53.5
    (e) τ_H          0.1 54.0   0.3* 55.4   0.5 54.6
    (f) (α, β)       (1,0) 51.7   (1,0.5) 54.5   (1,1)* 55.4   (1,2) 54.2

Its text gives 48.8 for λ1 = 0, 54.1 for λ1 = 2 and counts 22 configurations; these are 18.
The rows of λ are multiples of the config's own λ: on other models than the embedded one exactly the
values above, on that one λ1 ∈ {0, 0.02, 0.1, 0.2, 0.4} and λ2 ∈ {0, 0.01, 0.02, 0.06}, because its IFD is
about ten times the paper's, and the question is how far the dense terms may stray from the outcome's
size. All other values are the paper's. A completion of at most 10 tokens has one token in 𝒜 at fractions
of 0.05 and 0.1 alike, so that block (c) says little on direct answers.

    python -m jaxrl_reason.sweep --sweep=configs/sweeps/ispo_table7.py --workdir=runs/sweeps/table7
"""

from configs import ispo
from configs.sweeps import arguments

MULTIPLES = {"lambda1": (0, 0.2, 1, 2, 4), "lambda2": (0, 0.5, 1, 3)}
VALUES = {
    "top_fraction": (0.05, 0.1, 0.15, 0.2),
    "drift_threshold": (0.1, 0.3, 0.5),
    "entropy_threshold": (0.1, 0.3, 0.5),
}
WEIGHTS = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.0, 2.0))  # α, β


def get_sweep(arg=None):
    _, shared = arguments.read(arg)
    base, own = f"configs/ispo.py:{shared}", ispo.get_config(shared).ispo
    scaled = {key: [round(m * own[key], 9) for m in row] for key, row in MULTIPLES.items()}
    blocks = {"default": {"default": (base, {})}}
    for letter, (key, values) in zip("abcde", (scaled | VALUES).items(), strict=True):
        rows = {f"{key}={value:g}": (base, {f"ispo.{key}": value}) for value in values}
        blocks[f"({letter}) {key}"] = rows
    blocks["(f) alpha, beta"] = {
        f"alpha={alpha:g},beta={beta:g}": (base, {"ispo.alpha": alpha, "ispo.beta": beta})
        for alpha, beta in WEIGHTS
    }
    return blocks
