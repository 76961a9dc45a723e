"""Prompt templates, and Prompts batches: left-padded ids, never cut.

The templates are protocol constants of the papers and their evaluations, kept to the letter.
"""

import functools
import json
import zlib
from collections.abc import Sequence

import numpy as np

from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.types import Prompts

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
TEMPLATES = {
    "qwen_math": f"<|im_start|>system\n{_BOXED}<|im_end|>\n<|im_start|>user\n{{q}}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "qwen_boxed": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{q}\n"
    f"{_BOXED}<|im_end|>\n<|im_start|>assistant\n",
    "r1": "A conversation between User and Assistant. The User asks a question, and the Assistant "
    "solves it. The Assistant first thinks about the reasoning process in the mind and then provides "
    "the User with the answer. The reasoning process is enclosed within <think> </think> and answer is "
    "enclosed within <answer> </answer> tags, respectively, i.e., <think> reasoning process here "
    "</think> <answer> answer here </answer>.\nUser: {q}\nAssistant: <think>",
    "dapo": "Solve the following math problem step by step. The last line of your response should be "
    "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{q}"
    '\n\nRemember to put your answer on its own line after "Answer:".',
    "boxed_cot": f"{{q}}\n{_BOXED}",
    "raw": "{q}",
}
CHAT = "chat"  # the tokenizer's own chat template
# How templates ask for the answer, where not in a box; see verify.extract
ANSWER_FORMATS = {"r1": "answer_tag", "dapo": "answer_line"}
AUTO = "auto"


def answer_format(template: str, chosen: str) -> str:
    """The answer format in force: the chosen one, or for "auto" what the template asks for."""
    return ANSWER_FORMATS.get(template, "boxed") if chosen == AUTO else chosen


def render(template: str, problem: str, tokenizer: Tokenizer) -> str:
    """The prompt text of a problem. Raises ValueError naming the template and the known ones."""
    if template == CHAT:
        return _render_chat(problem, tokenizer)
    if template not in TEMPLATES:
        raise ValueError(f"template: {template!r} is not one of {(*TEMPLATES, CHAT)}")
    # replace, not format: problems are full of braces
    return TEMPLATES[template].replace("{q}", problem)


def _render_chat(problem, tokenizer):
    """The tokenizer's template with one user message, in an environment like that of transformers."""
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message):
        raise ValueError(f"{tokenizer.folder}: the chat template refuses the prompt: {message}")

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(tokenizer.chat_template).render(
        messages=[{"role": "user", "content": problem}],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        **tokenizer.named_tokens,
    )


def left_pad(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [P,S] int32 and mask [P,S] bool; a row longer than `length` is an error, it is never cut."""
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"prompt of {len(row)} tokens in a batch of length {length}")
        if len(row) == 0:
            raise ValueError("an empty prompt: the template renders to no token")
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return tokens, mask


def make_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, template: str, length: int, keys=None
) -> Prompts:
    """A batch of prompts padded on the left to `length`; `keys` [P] seed their rollouts (default: of their ids)."""
    rows = [tokenizer.encode(render(template, p.problem, tokenizer)) for p in problems]
    tokens, mask = left_pad(rows, length, tokenizer.pad_token_id)
    if keys is None:
        keys = [zlib.crc32(problem.id.encode()) for problem in problems]
    return Prompts(tokens, mask, np.asarray(keys, np.uint32), tuple(problems))


def fits(problem: Problem, tokenizer: Tokenizer, template: str, length: int) -> bool:
    """Whether a problem's prompt has at most `length` tokens."""
    return len(tokenizer.encode(render(template, problem.problem, tokenizer))) <= length


def filter_long(
    problems: Sequence[Problem], tokenizer: Tokenizer, template: str, length: int
) -> tuple[list[Problem], int]:
    """The problems whose prompts have at most `length` tokens, and how many have more."""
    kept = [p for p in problems if fits(p, tokenizer, template, length)]
    if not kept:
        raise ValueError(
            f"max_prompt_length: all {len(problems)} prompts have more than {length} tokens"
        )
    return kept, len(problems) - len(kept)
