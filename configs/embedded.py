"""How the embedded model was trained, in two stages of supervised fine-tuning on `arithmetic`.

`think`, from random weights: every solution takes one operation a line. `direct`, from the first stage:
most solutions are the bare box, so that the model can think but mostly answers at once. Both through
`make embedded`; about 20 minutes on 2 CPU cores.

    python -m jaxrl_reason.sft --config=configs/embedded.py:think --workdir=runs/embedded/think
    python -m jaxrl_reason.export --workdir=runs/embedded/think
    python -m jaxrl_reason.sft --config=configs/embedded.py:direct \\
        --config.model.path=runs/embedded/think/export --workdir=runs/embedded/direct
    python -m jaxrl_reason.export --workdir=runs/embedded/direct

`early_think` and `early_direct` are the same two stages cut short: starts whose thinking is often wrong,
one that always thinks and one that mostly answers at once. `make starts` writes them to runs/starts, for
configs/sweeps/std_floor.py.
"""

from configs import common
from jaxrl_reason import config as config_lib

# stage -> (folder of the model it starts from, steps)
STAGES = {
    "think": (None, 2200),
    "direct": ("runs/embedded/think/export", 1000),
    "early_think": (None, 850),
    "early_direct": ("runs/starts/early_think/export", 500),
}


def get_config(stage="think"):
    if stage not in STAGES:
        raise ValueError(f"config argument {stage!r}: expected one of {tuple(STAGES)}")
    start, config = STAGES[stage][0], config_lib.to_config_dict(config_lib.SftConfig())
    config.num_steps = STAGES[stage][1]
    config.data.source = "arithmetic"
    config.data.max_prompt_length = common.ARITHMETIC_PROMPT
    config.max_completion_length = 40
    config.batch_size = config.learner.micro_batch_size = 96
    config.learner.chunk_tokens = 16384
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.98
    config.log.tensorboard = False
    if start is None:
        config.random_init = True
        config.seed = 1
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup_steps = 100
    else:
        config.model.path = start
        config.seed = 2
        config.data.direct_fraction = 0.7
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 20
    return config
