"""Sections of a configuration that every method shares: data, sampling, optimiser, devices, files.

Keys follow TRL where it has a name. Sizes are counted in tokens, rollouts or steps as the name says.
"""

import dataclasses

from jaxrl_reason.validate import at_least, one_of, require

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
        # advantages are relative to the group: a group of one would teach nothing
        at_least("rollout", self, num_prompts=1, num_generations=2, max_completion_length=1)
        require("rollout.temperature", self.temperature, self.temperature > 0, "> 0")


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
