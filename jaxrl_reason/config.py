"""Every setting of the mains: declared here with type and default, checked before any work.

A config file under configs/ builds a ConfigDict from these dataclasses (`to_config_dict`) and changes
values; a main turns it back (`from_config_dict`). Only this file and the mains see a ConfigDict. Keys
follow TRL where it has a name. Sizes are counted in tokens, rollouts or steps as the name says.
"""

import dataclasses
import typing

import ml_collections

from jaxrl_reason.validate import at_least, check_seed, one_of, require, typed
from jaxrl_reason.workdir import overlay

MODEL_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The policy at the start, which is also π_0."""

    path: str = "tiny"  # a Hugging Face folder, or "tiny", the embedded model
    dtype: str = "float32"  # compute dtype; master parameters are always float32
    extra_eos_tokens: str = ""  # end tokens beside the folder's own, "<|im_end|>" or "<a>,<b>"

    def __post_init__(self):
        one_of("model.dtype", self.dtype, MODEL_DTYPES)


@dataclasses.dataclass(frozen=True)
class PromptSection:
    """Problems and how they become prompts."""

    source: str = "arithmetic"  # arithmetic, countdown, hf:dataset, or a .jsonl file
    split: str = "train"  # of a procedural task or a hub dataset; a file is used whole
    template: str = "chat"
    max_prompt_length: int = 32  # longer prompts are filtered out and counted, never cut

    def __post_init__(self):
        from jaxrl_reason.data.prompts import CHAT, TEMPLATES

        one_of("data.template", self.template, (*TEMPLATES, CHAT))
        at_least("data", self, max_prompt_length=1)


@dataclasses.dataclass(frozen=True)
class DataSection(PromptSection):
    """Problems, prompts, and how their answers are read."""

    answer_format: str = "auto"  # as the template asks; boxed, answer_tag, answer_line, hash

    def __post_init__(self):
        from jaxrl_reason.data.prompts import AUTO
        from jaxrl_reason.verify.extract import FORMATS

        super().__post_init__()
        one_of("data.answer_format", self.answer_format, (AUTO, *FORMATS))


@dataclasses.dataclass(frozen=True)
class SolutionSection(PromptSection):
    """Problems with their reference solutions."""

    direct_fraction: float = 0.0  # arithmetic: share of solutions without steps

    def __post_init__(self):
        super().__post_init__()
        share = self.direct_fraction
        require("data.direct_fraction", share, 0 <= share <= 1, "a number in [0, 1]")
        if share and self.source != "arithmetic":
            raise ValueError(
                f"data.direct_fraction: {share} is for arithmetic, not {self.source!r}"
            )


@dataclasses.dataclass(frozen=True)
class RolloutSection:
    """Sampling for training. No top-k or top-p here: the policy is what was sampled from."""

    num_prompts: int = 32  # prompts per step
    num_generations: int = 8  # rollouts of each prompt (G)
    max_completion_length: int = 48
    temperature: float = 1.0

    def __post_init__(self):
        at_least("rollout", self, num_prompts=1, num_generations=1, max_completion_length=1)
        require("rollout.temperature", self.temperature, self.temperature > 0, "> 0")


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """Which recipe, and what every group-relative recipe shares."""

    recipe: str = "ispo"
    scale_rewards: str = "std"  # "std" (GRPO) or "none" (Dr.GRPO)
    advantage_preset: str = "verl"  # whose ddof and eps: verl, trl, dr_grpo_repo, numpy
    std_floor: str = "0"  # σ_min: a number, or "outcome" for 1/√G
    num_iterations: int = (
        1  # updates per batch of rollouts; with 1 the ratio is 1 and nothing clips
    )
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    loss_type: str = "sequence_mean"  # or token_mean (DAPO), constant (Dr.GRPO)
    beta: float = 0.0  # weight of KL(π‖π_0) in the loss
    kl_estimator: str = "k3"  # or k2

    def __post_init__(self):
        from jaxrl_reason.advantages import group
        from jaxrl_reason.objectives import surrogate
        from jaxrl_reason.recipes import RECIPES

        one_of("algorithm.recipe", self.recipe, tuple(RECIPES))
        one_of("algorithm.scale_rewards", self.scale_rewards, group.SCALES)
        one_of("algorithm.advantage_preset", self.advantage_preset, tuple(group.PRESETS))
        one_of("algorithm.loss_type", self.loss_type, surrogate.LOSS_TYPES)
        one_of("algorithm.kl_estimator", self.kl_estimator, ("k2", "k3"))
        require(
            "algorithm.std_floor", self.std_floor, self.sigma_min is not None, "'outcome' or >= 0"
        )
        at_least("algorithm", self, beta=0, num_iterations=1)
        require("algorithm.epsilon", self.epsilon, 0 < self.epsilon < 1, "in (0, 1)")
        require("algorithm.epsilon_high", self.epsilon_high, self.epsilon_high > 0, "> 0")

    @property
    def sigma_min(self) -> float | str | None:
        """`std_floor` as `group_advantages` takes it; None if it is neither."""
        if self.std_floor == "outcome":
            return "outcome"
        try:
            value = float(self.std_floor)
        except ValueError:
            return None
        return value if 0 <= value < float("inf") else None


@dataclasses.dataclass(frozen=True)
class IspoSection:
    """ISPO's weights and sets; the defaults are the paper's (appendix A.2)."""

    lambda1: float = 0.5  # weight of the conditional IFD
    lambda2: float = 0.1  # weight of the token reward
    top_fraction: float = 0.1  # share of a rollout's tokens in 𝒜
    drift_threshold: float = 0.3  # τ_Δ, nats
    critical: str = "intersection"  # or entropy, drift, union (Table 2b)
    alpha: float = 1.0
    beta: float = 1.0  # hinge weight; 0 is "β = 0" of Table 2c
    entropy_threshold: float = 0.3  # τ_H, nats
    symmetric: bool = False  # the correct rollouts' form for all (Table 2c)
    ablated_stub: str = ""  # "": the answer's opening as sampled; else this text

    def __post_init__(self):
        from jaxrl_reason.rewards.ispo import CRITICAL_VARIANTS

        one_of("ispo.critical", self.critical, CRITICAL_VARIANTS)
        require("ispo.top_fraction", self.top_fraction, 0 < self.top_fraction <= 1, "in (0, 1]")
        at_least("ispo", self, drift_threshold=0, entropy_threshold=0)


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """AdamW on float32 masters, after clipping the global gradient norm."""

    learning_rate: float = 1e-6
    schedule: str = "constant"  # or cosine; both after a linear warm-up
    warmup_steps: int = 0
    final_fraction: float = 0.0  # cosine ends at this share of the rate
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_skipped_in_row: int = 5  # so many non-finite updates in a row stop the run

    def __post_init__(self):
        one_of("optimizer.schedule", self.schedule, ("constant", "cosine"))
        require("optimizer.learning_rate", self.learning_rate, self.learning_rate > 0, "> 0")
        require("optimizer.max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "> 0")
        require("optimizer.eps", self.eps, self.eps > 0, "> 0")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(f"optimizer.{name}", value, 0 <= value < 1, "in [0, 1)")
        share = self.final_fraction
        require("optimizer.final_fraction", share, 0 <= share <= 1, "in [0, 1]")
        at_least("optimizer", self, warmup_steps=0, weight_decay=0, max_skipped_in_row=1)


@dataclasses.dataclass(frozen=True)
class LearnerSection:
    """Memory knobs; none changes the gradient."""

    micro_batch_size: int = 64  # rows per forward/backward, over all devices; gradients accumulate
    chunk_tokens: int = 4096  # tokens whose logits exist at once
    remat: bool = False  # recompute layer activations in the backward pass

    def __post_init__(self):
        at_least("learner", self, micro_batch_size=1, chunk_tokens=1)


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """Device mesh; one axis may be -1, whatever remains."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """Orbax checkpoints: the last `keep`, and the best one by the evaluation (or training) accuracy."""

    every: int = 20  # steps; the last step is always saved
    keep: int = 2

    def __post_init__(self):
        at_least("checkpoint", self, every=1, keep=1)


@dataclasses.dataclass(frozen=True)
class EvalSection:
    """Evaluation. The test split of a procedural task has no problem of its training split."""

    source: str = "arithmetic"
    split: str = "test"
    num_problems: int = 256  # the first so many; 0: all
    num_generations: int = 8  # k of avg@k, pass@k, maj@k; 0: greedy only
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 64  # prompts at a time

    def __post_init__(self):
        at_least("eval", self, num_problems=0, num_generations=0, top_k=0, batch_size=1)
        require(
            "eval.temperature", self.temperature, self.temperature > 0, "> 0 (greedy is always run)"
        )
        require("eval.top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class VerifierSection:
    """The pool of verifier processes."""

    num_workers: int = 2
    timeout_s: float = 5.0  # per item; then its worker is killed and replaced

    def __post_init__(self):
        at_least("verifier", self, num_workers=1)
        require("verifier.timeout_s", self.timeout_s, self.timeout_s > 0, "> 0")


@dataclasses.dataclass(frozen=True)
class LogSection:
    """What is written beside the metrics."""

    tensorboard: bool = True
    rollouts_every: int = 20  # steps between samples of rollouts with per-token signals; 0: never
    rollouts_prompts: int = 2  # prompts per such sample
    all_signals: bool = (
        False  # compute π_0 and ablated answers, and their diagnostics, for any recipe
    )

    def __post_init__(self):
        at_least("log", self, rollouts_every=0, rollouts_prompts=1)


@dataclasses.dataclass(frozen=True)
class SftLogSection:
    """What is written beside the metrics."""

    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`python -m jaxrl_reason.train`."""

    seed: int = 0
    num_steps: int = 100
    eval_every: int = 0  # steps between evaluations during training; 0: only before and after
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    ispo: IspoSection = IspoSection()
    optimizer: OptimizerSection = OptimizerSection()
    learner: LearnerSection = LearnerSection()
    mesh: MeshSection = MeshSection()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    verifier: VerifierSection = VerifierSection()
    log: LogSection = LogSection()

    def __post_init__(self):
        at_least("", self, num_steps=1, eval_every=0)
        check_seed(self.seed)
        rows, micro = self.num_rollouts, self.learner.micro_batch_size
        require(
            "learner.micro_batch_size", micro, rows % micro == 0, f"a divisor of {rows} rollouts"
        )

    @property
    def num_rollouts(self) -> int:
        """Rows of one optimiser batch (B)."""
        return self.rollout.num_prompts * self.rollout.num_generations


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """`python -m jaxrl_reason.sft`."""

    seed: int = 0
    random_init: bool = (
        False  # start from random weights; model.path then gives config and tokenizer
    )
    num_steps: int = 100
    batch_size: int = 64
    max_completion_length: int = 48  # longer solutions are filtered out and counted
    model: ModelSection = ModelSection()
    data: SolutionSection = SolutionSection()
    optimizer: OptimizerSection = OptimizerSection(learning_rate=1e-5)
    learner: LearnerSection = LearnerSection()
    mesh: MeshSection = MeshSection()
    checkpoint: CheckpointSection = CheckpointSection(every=500)
    log: SftLogSection = SftLogSection()

    def __post_init__(self):
        at_least("", self, num_steps=1, batch_size=1, max_completion_length=1)
        check_seed(self.seed)
        rows, micro = self.batch_size, self.learner.micro_batch_size
        require(
            "learner.micro_batch_size", micro, rows % micro == 0, f"a divisor of batch_size {rows}"
        )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """`python -m jaxrl_reason.evaluate`."""

    seed: int = 0
    max_completion_length: int = 48
    model: ModelSection = ModelSection()
    template: str = "chat"
    answer_format: str = (
        "auto"  # what the template asks for; or boxed, answer_tag, answer_line, hash
    )
    max_prompt_length: int = 32
    eval: EvalSection = EvalSection()
    mesh: MeshSection = MeshSection()
    verifier: VerifierSection = VerifierSection()

    def __post_init__(self):
        at_least("", self, max_completion_length=1, max_prompt_length=1)
        check_seed(self.seed)
        DataSection(template=self.template, answer_format=self.answer_format)


def to_config_dict(config) -> ml_collections.ConfigDict:
    """A mutable ConfigDict with every key of a config dataclass, types locked."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(cls, raw: ml_collections.ConfigDict | dict, prefix: str = ""):
    """The validated dataclass of a ConfigDict.

    Raises ValueError naming an unknown, missing or ill-typed key or an impossible value, with what was
    found and what is allowed.
    """
    raw = raw.to_dict() if isinstance(raw, ml_collections.ConfigDict) else raw
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for kind, keys in (
        ("unknown", raw.keys() - fields.keys()),
        ("missing", fields.keys() - raw.keys()),
    ):
        if keys:
            name = ", ".join(prefix + key for key in sorted(keys))
            raise ValueError(f"{name}: {kind} config key; known here: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in raw.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"{prefix}{name}: expected a section, found {value!r}")
            values[name] = from_config_dict(kind, value, f"{prefix}{name}.")
        else:
            values[name] = typed(prefix + name, value, kind)
    return cls(**values)


def from_run(cls, raw: dict):
    """The config of an older run: keys that came later have their defaults."""
    return from_config_dict(cls, overlay(dataclasses.asdict(cls()), raw))
