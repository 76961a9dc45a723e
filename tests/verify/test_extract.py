import pytest

from jaxrl_reason.verify import answer_span, answer_tokens, extract, has_format


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),  # the last complete one
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{1}", r"\{1"),  # \{ opens nothing
        (r"\boxed{a\\}", r"a\\"),  # the second backslash is escaped, so the brace closes
        (r"\boxed{a\}", None),
        (r"\boxed{\boxed{7}}", "7"),
        (r"{ \boxed{7}", "7"),
        (r"} \boxed{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"1 \\ \\\boxed{7}", "7"),
        (r"\\boxed{7}", "7"),  # doubly escaped by the model
        ("\\boxed{ 4\n}", "4"),
        (r"\boxed{1} \boxed{}", None),  # the last one decides
        (r"\boxed{1} \boxed{ }", None),
        ("the answer is 4", None),
        ("", None),
        (r"\boxed{½ über}", "½ über"),
    ],
)
def test_boxed(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("fmt", "text", "answer"),
    [
        ("answer_tag", "<answer>1</answer><answer> 2 </answer>", "2"),
        ("answer_tag", "<answer>1</answer> </answer>", "1"),
        ("answer_tag", "<answer>say <answer>2</answer>", "2"),
        ("answer_tag", "<answer>1", None),
        ("answer_tag", "<answer>1</answer><answer></answer>", None),
        ("answer_line", "Answer: 3\nANSWER : 4 \nbye", "4"),
        ("answer_line", "Answer:\n5", "5"),
        ("answer_line", "Answer:   ", None),
        ("hash", "#### 12\n#### -1,234.5", "-1,234.5"),
        ("hash", "#### $5", "$5"),
        ("hash", "#### 7.", "7"),
        ("hash", "#### Step 2", None),
        ("hash", "##### 3", None),
    ],
)
def test_other_formats(fmt, text, answer):
    assert extract(text, fmt) == answer


def test_format_rate_counts_an_empty_box():
    assert has_format(r"\boxed{}")
    assert not has_format(r"\boxed{")
    assert has_format("<answer></answer>", "answer_tag")
    assert not has_format(r"\boxed{4}", "answer_tag")


def test_unknown_format_is_named():
    with pytest.raises(ValueError, match="boxed, answer_tag"):
        extract("4", "latex")


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        (["so ", "\\", "boxed", "{", "4", "2", "}", "."], (1, 4, 6)),
        (["so \\boxed", "{4", "2}", "."], (0, 1, 3)),  # {4 and 2} hold content
        (["x", "\\boxed{42}"], (1, 1, 2)),  # no stub of its own
        (["\\boxed{", "", "4", "", "2", "", "}"], (0, 2, 5)),  # empty tokens at the edges are out
        (["\\boxed{", " ", "4", " ", "}"], (0, 1, 4)),  # blanks inside the box are content
        (["\\boxed{1}", "\\boxed{", "2", "}"], (1, 2, 3)),
        (["\\boxed{", " ", "}"], None),
        (["no", "box"], None),
        ([], None),
    ],
)
def test_tokens(pieces, tokens):
    assert answer_tokens(pieces) == tokens
    assert answer_span(pieces) == (tokens[1:] if tokens else None)


def test_token_that_holds_part_of_a_character():
    euro = "€".encode()
    pieces = [b"\\boxed{", euro[:1], euro[1:], b"5", b"}"]
    assert answer_span(pieces) == (1, 4)
    # The last byte of the character shares its token with the closing brace.
    assert answer_span(["ü".encode(), b"\\boxed{", euro[:2], euro[2:] + b"}"]) == (2, 4)


def test_span_does_not_depend_on_the_cut_into_tokens():
    text = "Σ = \\boxed{½ + ü} end"
    data = text.encode()
    content = "½ + ü".encode()
    start = data.index(content)
    one_byte_each = [data[i : i + 1] for i in range(len(data))]
    assert answer_span(one_byte_each) == (start, start + len(content))
    for cut in range(1, len(data)):
        first, stop = answer_span([data[:cut], data[cut:]])
        assert first == int(cut <= start)
        assert stop == 1 + int(cut < start + len(content))


@pytest.mark.parametrize("fmt", ["boxed", "answer_tag", "answer_line", "hash"])
@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "<answer>", "Answer:", "Answer", "\\boxed \t", "####", "{", "\\", "\n", " "],
)
def test_adversarial_repetition_is_linear(fmt, unit):
    """A quadratic scan of these 10^5 openings would take minutes."""
    text = unit * 100_000
    # text and tokens agree on whether there is an answer
    assert (extract(text, fmt) is None) == (answer_span([unit] * 100_000, fmt) is None)


def test_many_nested_boxes():
    text = "\\boxed{" * 100_000 + "5" + "}" * 100_000
    assert extract(text) == "5"
    assert extract("\\boxed{" * 100_000 + "5}") == "5"
