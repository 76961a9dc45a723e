import dataclasses
import math

import pytest

from configs import common
from jaxrl_reason.config import (
    AlgorithmSection,
    EvaluateConfig,
    SftConfig,
    TrainConfig,
    from_config_dict,
    from_run,
    to_config_dict,
)
from jaxrl_reason.recipes import RECIPES

CONFIGS = (TrainConfig, SftConfig, EvaluateConfig)


def changed(key, value, cls=TrainConfig):
    """The config with one dotted key set to a value."""
    raw = dataclasses.asdict(cls())
    *path, last = key.split(".")
    section = raw
    for name in path:
        section = section[name]
    section[last] = value
    return from_config_dict(cls, raw)


@pytest.mark.parametrize("cls", CONFIGS)
def test_round_trip(cls):
    assert from_config_dict(cls, to_config_dict(cls())) == cls()
    assert from_config_dict(cls, dataclasses.asdict(cls())) == cls()


@pytest.mark.parametrize("key", ["steps", "rollout.top_p", "algorithm.clip"])
def test_an_unknown_key_is_named_with_the_known_ones(key):
    with pytest.raises(ValueError) as error:
        changed(key, 1)
    assert f"{key}: unknown config key" in str(error.value)
    known = {"steps": "num_steps", "rollout.top_p": "temperature", "algorithm.clip": "epsilon_high"}
    assert known[key] in str(error.value)


@pytest.mark.parametrize("key", ["seed", "optimizer.b2", "rollout"])
def test_a_missing_key_is_named(key):
    raw = dataclasses.asdict(TrainConfig())
    *path, last = key.split(".")
    del (raw[path[0]] if path else raw)[last]
    with pytest.raises(ValueError, match=f"{key}: missing config key"):
        from_config_dict(TrainConfig, raw)


@pytest.mark.parametrize(
    ("key", "value", "found", "expected"),
    [
        ("num_steps", "10", "str", "int"),
        ("num_steps", 10.0, "float", "int"),
        ("num_steps", True, "bool", "int"),
        ("rollout.temperature", "hot", "str", "float"),
        ("rollout.temperature", True, "bool", "float"),
        ("learner.remat", 1, "int", "bool"),
        ("model.path", None, "NoneType", "str"),
        ("algorithm.std_floor", 0.5, "float", "str"),
    ],
)
def test_a_wrong_type_is_named(key, value, found, expected):
    with pytest.raises(ValueError) as error:
        changed(key, value)
    assert str(error.value) == f"{key}: {value!r} is of type {found}, expected {expected}"


def test_a_number_in_the_place_of_a_section_is_refused():
    with pytest.raises(ValueError, match="rollout: expected a section, found 3"):
        changed("rollout", 3)


def test_the_share_of_direct_solutions():
    with pytest.raises(ValueError, match=r"data.direct_fraction: 1.5 .* in \[0, 1\]"):
        changed("data.direct_fraction", 1.5, SftConfig)
    raw = dataclasses.asdict(SftConfig())
    raw["data"] |= {"source": "countdown", "direct_fraction": 0.5}
    with pytest.raises(ValueError, match="data.direct_fraction: 0.5 is for arithmetic"):
        from_config_dict(SftConfig, raw)


def test_an_older_run_gets_the_defaults_of_newer_keys():
    raw = dataclasses.asdict(TrainConfig(seed=3))
    del raw["algorithm"]["num_iterations"]
    assert from_run(TrainConfig, raw) == TrainConfig(seed=3)


def test_whole_numbers_are_fine_as_floats():
    config = changed("rollout.temperature", 1)
    assert config.rollout.temperature == 1.0 and isinstance(config.rollout.temperature, float)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", -1, "0 to 2**31 - 1"),
        ("num_steps", 0, ">= 1"),
        ("model.dtype", "float16", "'float32', 'bfloat16'"),
        ("data.template", "alpaca", "'qwen_math'"),
        ("data.answer_format", "last_number", "'boxed'"),
        ("data.max_prompt_length", 0, ">= 1"),
        ("rollout.num_generations", 1, ">= 2"),
        ("rollout.temperature", 0.0, "> 0"),
        ("algorithm.recipe", "ppo", "'grpo', 'dr_grpo', 'dapo'"),
        ("algorithm.scale_rewards", "batch", "'std', 'none'"),
        ("algorithm.advantage_preset", "torch", "'verl', 'trl'"),
        ("algorithm.loss_type", "mean", "'sequence_mean', 'token_mean', 'constant'"),
        ("algorithm.kl_estimator", "k1", "'k2', 'k3'"),
        ("algorithm.epsilon", 1.0, "in (0, 1)"),
        ("algorithm.epsilon", -0.1, "in (0, 1)"),
        ("algorithm.beta", -0.1, ">= 0"),
        ("algorithm.kl_reward_estimator", "k4", "'k1', 'k2', 'k3'"),
        ("algorithm.importance_sampling_level", "row", "'token', 'sequence'"),
        ("algorithm.delta", 1.2, "0 or > 1.28"),
        ("algorithm.top_entropy_quantile", 0.0, "in (0, 1]"),
        ("algorithm.reward_correct", 0.0, "> algorithm.reward_wrong 0.0"),
        ("algorithm.overlong_cache", 49, "at most rollout.max_completion_length 48"),
        ("algorithm.num_mini_batches", 3, "a divisor of rollout.num_prompts 32"),
        ("algorithm.num_mini_batches", 8, "a divisor of the 32 rollouts"),
        ("algorithm.max_resample", 5, "set with algorithm.dynamic_sampling"),
        ("algorithm.kl_estimator", "k2", "set with algorithm.beta"),
        ("algorithm.kl_reward_estimator", "k2", "set with algorithm.beta_reward"),
        ("erpo.num_buckets", 0, ">= 1"),
        ("pacr.gamma", 1.5, "in [0, 1]"),
        ("pacr.step_end", "x*", "an expression that matches some text"),
        ("progrpo.fraction", 0.0, "in (0, 1]"),
        ("prepo.candidates", 0, ">= 1"),
        ("scaf.template", "Solve {problem}", "a text with {hint}"),
        ("lora.rank", -1, ">= 0"),
        ("lora.alpha", 0.0, "> 0"),
        ("lora.alpha", 8.0, "set with lora.rank"),
        ("ispo.critical", "both", "'intersection', 'entropy', 'drift', 'union'"),
        ("ispo.top_fraction", 0.0, "in (0, 1]"),
        ("ispo.drift_threshold", -0.1, ">= 0"),
        ("optimizer.learning_rate", 0.0, "> 0"),
        ("optimizer.schedule", "linear", "'constant', 'cosine'"),
        ("optimizer.warmup_steps", -1, ">= 0"),
        ("optimizer.max_grad_norm", 0.0, "> 0"),
        ("optimizer.b1", 1.0, "in [0, 1)"),
        ("optimizer.b2", -0.1, "in [0, 1)"),
        ("optimizer.eps", 0.0, "> 0"),
        ("optimizer.final_fraction", 1.5, "in [0, 1]"),
        ("learner.micro_batch_size", 48, "a divisor of the 256 rollouts"),
        ("checkpoint.every", 0, ">= 1"),
        ("eval.temperature", 0.0, "> 0"),
        ("eval.top_p", 1.1, "in (0, 1]"),
        ("eval.num_problems", -1, ">= 0"),
        ("verifier.timeout_s", 0.0, "> 0"),
        ("log.rollouts_every", -1, ">= 0"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(key, value, allowed):
    with pytest.raises(ValueError) as error:
        changed(key, value)
    message = str(error.value)
    if key == "algorithm.num_mini_batches" and value == 8:  # then a micro-batch no longer fits
        key, value = "learner.micro_batch_size", 64
    assert f"{key}: {value!r}" in message and allowed in message


def another(value):
    """A value of the same type that the algorithm section would allow under another recipe."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        names = (
            ("std", "none"),
            ("constant", "token_mean"),
            ("sequence", "token"),
            ("verl", "trl"),
            ("0", "1"),
        )
        return next(b if value == a else a for a, b in names if value in (a, b))
    return value + 1 if isinstance(value, int) else value / 2 + 0.05


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipes_config_is_the_method_and_reads_its_section_alone(recipe):
    config = from_config_dict(TrainConfig, common.train(None, recipe))
    assert config.algorithm.recipe == recipe
    for key, value in RECIPES[recipe].fixed.items():
        raw = dataclasses.asdict(config)
        raw["algorithm"][key] = another(value)
        with pytest.raises(ValueError, match=f"algorithm.{key}: "):
            from_config_dict(TrainConfig, raw)
    settings = {"erpo.eta": 0.5, "gtpo.alpha2": 0.5, "pacr.gamma": 0.5, "progrpo.alpha": 0.5,
                "prepo.candidates": 2, "scaf.max_hints": 1, "ispo.lambda1": 0.3}  # fmt: skip
    for key, value in settings.items():
        section, name = key.split(".")
        raw = dataclasses.asdict(config)
        raw[section][name] = value
        if section == RECIPES[recipe].section:
            from_config_dict(TrainConfig, raw)
        else:
            with pytest.raises(ValueError, match=f"{key}: {value}.*does not read it"):
                from_config_dict(TrainConfig, raw)


def test_diagnostics_read_ispos_sets_under_every_recipe():
    raw = dataclasses.asdict(from_config_dict(TrainConfig, common.train(None, "grpo")))
    raw["ispo"]["top_fraction"] = 0.2
    assert from_config_dict(TrainConfig, raw).ispo.top_fraction == 0.2


def test_a_floor_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="algorithm.std_floor: 'outcome'.*'0' without a scale"):
        AlgorithmSection(scale_rewards="none", std_floor="outcome")


def test_nan_is_refused_everywhere():
    for section, values in dataclasses.asdict(TrainConfig()).items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, float):
                with pytest.raises(ValueError, match=f"{section}.{name}"):
                    changed(f"{section}.{name}", math.nan)


@pytest.mark.parametrize(
    ("text", "sigma_min"), [("0", 0.0), ("0.25", 0.25), ("outcome", "outcome"), ("1e-3", 1e-3)]
)
def test_std_floor(text, sigma_min):
    assert changed("algorithm.std_floor", text).algorithm.sigma_min == sigma_min
    assert type(AlgorithmSection(std_floor=text).sigma_min) is type(sigma_min)


@pytest.mark.parametrize("text", ["", "half", "-1", "nan", "inf"])
def test_a_std_floor_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="algorithm.std_floor: .*'outcome' or >= 0"):
        changed("algorithm.std_floor", text)


def test_batches_must_divide_in_every_main():
    with pytest.raises(ValueError, match="learner.micro_batch_size: 48"):
        changed("learner.micro_batch_size", 48, SftConfig)
    with pytest.raises(ValueError, match="data.template: 'alpaca'"):
        changed("template", "alpaca", EvaluateConfig)


def test_the_ispo_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.ispo.lambda1, config.ispo.lambda2) == (0.5, 0.1)
    assert (config.ispo.top_fraction, config.ispo.drift_threshold) == (0.1, 0.3)
    assert (config.ispo.alpha, config.ispo.beta, config.ispo.entropy_threshold) == (1.0, 1.0, 0.3)
    assert (config.algorithm.epsilon, config.algorithm.epsilon_high) == (0.2, 0.28)
    assert config.algorithm.loss_type == "sequence_mean" and config.algorithm.beta == 0.0
    assert config.algorithm.sigma_min == 0.0
    assert config.optimizer.learning_rate == 1e-6
    assert (config.rollout.num_generations, config.rollout.temperature) == (8, 1.0)
