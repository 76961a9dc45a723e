"""Every setting of the mains: declared here with type and default, checked before any work.

A config file under configs/ builds a ConfigDict from these dataclasses (`to_config_dict`) and changes
values; a main turns it back (`from_config_dict`). Only this file and the mains see a ConfigDict. Keys
follow TRL where it has a name. Sizes are counted in tokens, rollouts or steps as the name says.
"""

import dataclasses
import typing

import ml_collections

from jaxrl_reason.method_sections import (
    AlgorithmSection,
    ErpoSection,
    GtpoSection,
    IspoSection,
    LoraSection,
    PacrSection,
    PrepoSection,
    ProgrpoSection,
    ScafSection,
)
from jaxrl_reason.recipes import RECIPES
from jaxrl_reason.sections import (
    MODEL_DTYPES,
    CheckpointSection,
    DataSection,
    EvalSection,
    LearnerSection,
    LogSection,
    MeshSection,
    ModelSection,
    OptimizerSection,
    RolloutSection,
    SftLogSection,
    SolutionSection,
    VerifierSection,
)
from jaxrl_reason.validate import at_least, check_seed, one_of, require, typed
from jaxrl_reason.workdir import overlay

__all__ = ["MODEL_DTYPES", "EvaluateConfig", "SftConfig", "TrainConfig"]

# of the ispo section, what the diagnostics of every recipe read
DIAGNOSTIC_KEYS = ("top_fraction", "drift_threshold", "ablated_stub")


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
    erpo: ErpoSection = ErpoSection()
    gtpo: GtpoSection = GtpoSection()
    pacr: PacrSection = PacrSection()
    progrpo: ProgrpoSection = ProgrpoSection()
    prepo: PrepoSection = PrepoSection()
    scaf: ScafSection = ScafSection()
    lora: LoraSection = LoraSection()
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
        one_of("algorithm.recipe", self.algorithm.recipe, tuple(RECIPES))
        parts, prompts = self.algorithm.num_mini_batches, self.rollout.num_prompts
        require(
            "algorithm.num_mini_batches", parts, prompts % parts == 0,
            f"a divisor of rollout.num_prompts {prompts}: groups stay whole",
        )  # fmt: skip
        rows, micro = self.num_rollouts // parts, self.learner.micro_batch_size
        require(
            "learner.micro_batch_size", micro, rows % micro == 0,
            f"a divisor of the {rows} rollouts of an optimiser step",
        )  # fmt: skip
        length, cache = self.rollout.max_completion_length, self.algorithm.overlong_cache
        require(
            "algorithm.overlong_cache", cache, cache <= length,
            f"at most rollout.max_completion_length {length}",
        )  # fmt: skip
        if not self.lora.rank:
            default = LoraSection().alpha
            require("lora.alpha", self.lora.alpha, self.lora.alpha == default, "set with lora.rank")
        self._refuse_unused()

    @property
    def num_rollouts(self) -> int:
        """Rows of one batch of rollouts (B)."""
        return self.rollout.num_prompts * self.rollout.num_generations

    def _refuse_unused(self):
        """A setting that the chosen recipe never reads is a mistake worth stopping for."""
        recipe = RECIPES[self.algorithm.recipe]
        for key, value in recipe.fixed.items():
            found = getattr(self.algorithm, key)
            require(
                f"algorithm.{key}", found, found == value,
                f"{value!r} under recipe {self.algorithm.recipe!r}: its entry in recipes.py fixes it",
            )  # fmt: skip
        unused = {r.section for r in RECIPES.values() if r.section} - {recipe.section}
        for name in sorted(unused):
            section = getattr(self, name)
            for field in dataclasses.fields(section):
                found = getattr(section, field.name)
                read = name == "ispo" and field.name in DIAGNOSTIC_KEYS
                require(
                    f"{name}.{field.name}", found, read or found == field.default,
                    f"only {field.default!r} under recipe {self.algorithm.recipe!r}, "
                    "which does not read it",
                )  # fmt: skip


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
