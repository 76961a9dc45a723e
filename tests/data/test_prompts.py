import json
import os
import shutil
import zlib

import numpy as np
import pytest

from jaxrl_reason.data.prompts import TEMPLATES, filter_long, left_pad, make_prompts, render
from jaxrl_reason.data.tasks import Problem
from jaxrl_reason.data.tokenizer import Tokenizer
from tests.toys import EMBEDDED

REAL = os.environ.get("JAXRL_REASON_QWEN05B", "")
EXPECTED = {
    "qwen_math": "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
    "qwen_boxed": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQUESTION\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n",
    "r1": "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: QUESTION\nAssistant: <think>",
    "dapo": 'Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nQUESTION\n\nRemember to put your answer on its own line after "Answer:".',
    "boxed_cot": "QUESTION\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "raw": "QUESTION",
}
BRACES = "Let $S = \\{x : {q} \\in \\frac{1}{2}\\}$, {} {0} {{q}} %s {{ messages }} {% if %} \\1"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(str(EMBEDDED))


@pytest.fixture
def folder_with(tmp_path):
    """Function (chat template, settings) -> a tokenizer with them."""

    def make(template, **settings):
        shutil.copy(EMBEDDED / "tokenizer.json", tmp_path)
        raw = json.loads((EMBEDDED / "tokenizer_config.json").read_text())
        raw |= {"chat_template": template} | settings
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
        return str(tmp_path)

    return make


def test_every_template_is_tested():
    assert set(TEMPLATES) == set(EXPECTED)


@pytest.mark.parametrize("template", EXPECTED)
def test_templates_to_the_letter(template, tokenizer):
    assert render(template, "QUESTION", tokenizer) == EXPECTED[template]


@pytest.mark.parametrize("template", [*EXPECTED, "chat"])
def test_problems_full_of_braces_survive(template, tokenizer):
    text = render(template, BRACES, tokenizer)
    assert text.count(BRACES) == 1
    assert text == render(template, "QUESTION", tokenizer).replace("QUESTION", BRACES)


def test_the_embedded_chat_template(tokenizer):
    expected = "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n"
    assert render("chat", "QUESTION", tokenizer) == expected


@pytest.mark.parametrize("name", ["embedded", "real"])
@pytest.mark.parametrize("problem", ["QUESTION", BRACES, " two\nlines \n", "é 😀 <b>&amp;</b>"])
def test_chat_rendering_is_that_of_transformers(name, problem):
    transformers = pytest.importorskip("transformers")
    if name == "real" and not REAL:
        pytest.skip("JAXRL_REASON_QWEN05B names no folder")
    folder = REAL if name == "real" else str(EMBEDDED)
    assert_same_rendering(transformers, folder, problem)


def assert_same_rendering(transformers, folder, problem):
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = render("chat", problem, Tokenizer(folder))
    messages = [{"role": "user", "content": problem}]
    theirs = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours == theirs
    return ours


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ eos_token }}|{{ pad_token }}|{{ messages[0]['content'] | tojson }}",
        "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
        "{% if tools is not none %}tools{% endif %}{% if documents %}d{% endif %}{{ messages }}",
        "  {% if add_generation_prompt %}\n    x\n  {% endif %}\n{{ messages[0].role }}\n",
    ],
)
@pytest.mark.parametrize(
    "bos", ["<|im_start|>", {"__type": "AddedToken", "content": "<|im_start|>"}]
)
def test_what_chat_templates_may_use(template, bos, folder_with):
    transformers = pytest.importorskip("transformers")
    folder = folder_with(template, bos_token=bos)
    ours = assert_same_rendering(transformers, folder, 'é "q" <b>\'')
    if "bos_token" in template:
        assert ours.startswith("<|im_start|><|im_end|>|<|endoftext|>|")


def test_a_chat_template_that_refuses_is_heard(folder_with):
    folder = folder_with("{{ raise_exception('no system message') }}")
    with pytest.raises(ValueError, match="no system message"):
        render("chat", "QUESTION", Tokenizer(folder))


def test_unknown_templates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="template: 'qwen' is not one of .*'qwen_math'.*'chat'"):
        render("qwen", "QUESTION", tokenizer)


def test_left_padding():
    tokens, mask = left_pad([[1, 2, 3], [4]], 4, 9)
    np.testing.assert_array_equal(tokens, [[9, 1, 2, 3], [9, 9, 9, 4]])
    np.testing.assert_array_equal(mask, [[False, True, True, True], [False, False, False, True]])
    assert tokens.dtype == np.int32 and mask.dtype == bool
    with pytest.raises(ValueError, match="prompt of 3 tokens in a batch of length 2"):
        left_pad([[4], [1, 2, 3]], 2, 0)
    with pytest.raises(ValueError, match="empty prompt"):
        left_pad([[1], []], 2, 0)


def test_prompt_batches(tokenizer):
    problems = [Problem("a", "What is 1 + 1?", "2"), Problem("b", BRACES, "3")]
    prompts = make_prompts(problems, tokenizer, "qwen_boxed", 256)
    assert prompts.tokens.shape == prompts.mask.shape == (2, 256)
    assert prompts.keys.tolist() == [zlib.crc32(b"a"), zlib.crc32(b"b")]
    assert prompts.keys.dtype == np.uint32
    assert prompts.problems == tuple(problems)
    for problem, tokens, mask in zip(problems, prompts.tokens, prompts.mask, strict=True):
        assert mask[-1] and np.all(np.diff(mask.astype(int)) >= 0)
        text = tokenizer.decode(tokens[mask], skip_special=False)
        assert text == render("qwen_boxed", problem.problem, tokenizer)
        assert tokens[mask][0] == tokenizer.special["<|im_start|>"]
    assert make_prompts(problems, tokenizer, "raw", 128, [7, 2**32 - 1]).keys.tolist() == [
        7,
        2**32 - 1,
    ]


def test_long_prompts_are_filtered_and_counted_never_cut(tokenizer):
    problems = [Problem(str(n), "add " * n, "0") for n in (1, 50, 5, 60, 7)]
    lengths = [len(tokenizer.encode(render("raw", p.problem, tokenizer))) for p in problems]
    limit = lengths[4]  # a prompt of exactly the limit stays
    kept, dropped = filter_long(problems, tokenizer, "raw", limit)
    assert [p.id for p in kept] == ["1", "5", "7"] and dropped == 2
    assert filter_long(problems, tokenizer, "raw", max(lengths)) == (problems, 0)
    make_prompts(kept, tokenizer, "raw", limit)
    with pytest.raises(ValueError, match=f"prompt of {max(lengths)} tokens"):
        make_prompts(problems, tokenizer, "raw", max(lengths) - 1)
    with pytest.raises(ValueError, match=f"max_prompt_length: all 5 .* {min(lengths) - 1} tokens"):
        filter_long(problems, tokenizer, "raw", min(lengths) - 1)
