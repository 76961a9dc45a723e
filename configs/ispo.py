"""ISPO placeholder docstring, written after measuring."""

from configs import common


def get_config(arg=None):
    config = common.train(arg)
    config.algorithm.recipe = "ispo"
    set_budget(config)
    if config.model.path == "tiny":
        config.algorithm.std_floor = "outcome"
        config.ispo.lambda1 = 0.1
        config.ispo.lambda2 = 0.02
    return config


def set_budget(config):
    """Steps and rate; the same for every method on the same model."""
    if config.model.path == "tiny":
        config.num_steps = 60
        config.optimizer.learning_rate = 1e-4
        config.optimizer.warmup_steps = 5
        config.optimizer.weight_decay = 0.0
        config.learner.micro_batch_size = 256
        config.learner.chunk_tokens = 16384
        config.eval.batch_size = 128
    else:
        config.num_steps = 500
