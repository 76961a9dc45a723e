"""Evaluation of one model on one source: greedy Pass@1, and avg@k, pass@k, maj@k of k samples.

    python -m jaxrl_reason.evaluate --config=configs/evaluate.py:model=FOLDER,task=FILE.jsonl \\
        --config.eval.num_generations=16 --workdir=runs/evaluate
"""

from configs import common
from jaxrl_reason import config as config_lib


def get_config(arg=None):
    values = common.parse(arg)
    config = config_lib.to_config_dict(config_lib.EvaluateConfig())
    config.model.path = values["model"]
    config.eval.source = values["task"]
    if values["model"] == "tiny":
        config.eval.batch_size = 128
        if values["task"] == "arithmetic":
            config.max_prompt_length = common.ARITHMETIC_PROMPT
    else:
        config.mesh.data, config.mesh.fsdp = 1, -1
        config.model.dtype = "bfloat16"
        config.model.extra_eos_tokens = "<|im_end|>"
        config.template = "qwen_boxed"
        config.max_prompt_length = 1024
        config.max_completion_length = 2048
        config.eval.num_problems = 0
        config.eval.temperature = 0.6
    return config
