"""Supervised fine-tuning on reference solutions, by maximum likelihood of all solution tokens.

The same learner as the RL methods with another objective; the usual start of a model that cannot yet
answer in the right form. On a JSONL file every row needs a `solution`.

    python -m jaxrl_reason.sft --config=configs/sft.py:model=tiny,task=arithmetic --workdir=runs/sft
"""

from configs import common
from jaxrl_reason import config as config_lib


def get_config(arg=None):
    values = common.parse(arg)
    config = config_lib.to_config_dict(config_lib.SftConfig())
    config.model.path = values["model"]
    config.data.source = values["task"]
    if values["model"] == "tiny":
        if values["task"] == "arithmetic":
            config.data.max_prompt_length = common.ARITHMETIC_PROMPT
        config.optimizer.learning_rate = 5e-4
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 20
        config.optimizer.b2 = 0.98
        config.learner.chunk_tokens = 16384
    else:
        config.model.dtype = "bfloat16"
        config.learner.remat = True
        config.mesh.data, config.mesh.fsdp = 1, -1
        config.model.extra_eos_tokens = "<|im_end|>"
        config.data.template = "qwen_math"
        config.data.max_prompt_length = 1024
        config.max_completion_length = 2048
        config.optimizer.warmup_steps = 20
    return config
