"""What each part of ERPO does, and how much its settings matter.

The paper compares ERPO with GRPO under the same settings, and has neither an ablation of its parts nor a
table of sensitivity. These rows are ours:

    erpo          all parts
    eta=0         no process term: the group advantage, z-scored once more over the tokens of the group
    gamma=0       no gate: W = 1/2 at every token, which the rescaling to σ_target undoes
    num_buckets=1 no buckets: progress is normalised over all tokens of the group
    grpo          the baseline, with ERPO's loss, clip range, KL and rate

and one setting at a time around the default: η, γ, K. β_progress has no row: the normalisation in a
bucket divides it out, but for the δ of the denominator.

    python -m jaxrl_reason.sweep --sweep=configs/sweeps/erpo_ablations.py --workdir=runs/sweeps/erpo
"""

from configs.sweeps import arguments

VALUES = {"eta": (0.1, 0.2, 0.5, 1.0), "gamma": (1.0, 5.0, 10.0), "num_buckets": (5, 10, 20)}


def get_sweep(arg=None):
    _, shared = arguments.read(arg)
    erpo = f"configs/erpo.py:{shared}"
    blocks = {
        "parts": {
            "erpo": (erpo, {}),
            "eta=0": (erpo, {"erpo.eta": 0.0}),
            "gamma=0": (erpo, {"erpo.gamma": 0.0}),
            "num_buckets=1": (erpo, {"erpo.num_buckets": 1}),
            "grpo": (erpo, {"algorithm.recipe": "grpo"}),
        }
    }
    for key, values in VALUES.items():
        blocks[key] = {f"{key}={value:g}": (erpo, {f"erpo.{key}": value}) for value in values}
    return blocks
