"""Does ISPO's z-score need a floor where thinking is unreliable?

Where all outcomes of a group agree, the z-score divides the dense terms by their own spread: λ cancels,
and "depend less on your thinking" is learnt at full strength however small λ is. Asked of three forms,

    literal   the published one: σ_R alone
    floor     std_floor = "outcome": σ_R, but at least the smallest σ of a mixed group, 1/√G
    no_std    scale_rewards = "none": R − μ, as Dr.GRPO has it

at λ1 = 0.02, 0.1, 0.5 with λ2 = λ1/5 (the paper's ratio; 0.5 is its λ1, 0.1 that of configs/ispo.py), and
of GRPO, from two starts whose thinking is often wrong: `direct`, which mostly answers at once, and
`think`, which always thinks. `make starts` trains them (configs/embedded.py). `starts` is their folder.
The measure is greedy Pass@1 and the thinking rate at the end. 20 settings, 3 minutes each and seed on 2
CPU cores.

    make starts
    python -m jaxrl_reason.sweep --sweep=configs/sweeps/std_floor.py:starts=runs/starts \\
        --workdir=runs/sweeps/std_floor
"""

from configs.sweeps import arguments

STARTS = {"direct": "early_direct", "think": "early_think"}
FORMS = {
    "literal": {"algorithm.std_floor": "0"},
    "floor": {"algorithm.std_floor": "outcome"},
    "no_std": {"algorithm.std_floor": "0", "algorithm.scale_rewards": "none"},
}
LAMBDAS = (0.02, 0.1, 0.5)


def get_sweep(arg=None):
    own, shared = arguments.read(arg, starts="runs/starts")
    if shared != arguments.read(None)[1]:
        raise ValueError(
            f"sweep argument {shared!r}: the starts were made for {arguments.read(None)[1]}"
        )
    base = f"configs/{{}}.py:{shared}"  # budget and lengths of the embedded model; its path is replaced
    blocks = {}
    for start, stage in STARTS.items():
        model = {"model.path": f"{own['starts']}/{stage}/export"}
        rows = {f"{start}-grpo": (base.format("grpo"), model)}
        for form, settings in FORMS.items():
            for weight in LAMBDAS:
                weights = {"ispo.lambda1": weight, "ispo.lambda2": round(weight / 5, 9)}
                setting = (base.format("ispo_literal"), model | settings | weights)
                rows[f"{start}-{form}-{weight:g}"] = setting
        blocks[f"start: {start}"] = rows
    return blocks
