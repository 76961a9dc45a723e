"""Countdown: does an expression use exactly the given numbers and reach the target?

A recursive descent parser over exact fractions. Nothing is ever evaluated by Python itself, and
everything outside `+ - * / ( )` and whole numbers is refused: `**`, `//`, a sign in front of a
number, `1_0`, `0x1`, decimals.
"""

import json
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from jaxrl_reason.verify.extract import extract, has_format
from jaxrl_reason.verify.verdict import Verdict

MAX_LENGTH = 1000
MAX_DEPTH = 50
TOLERANCE = Fraction(1, 100_000)

_SPELLINGS = (
    (re.compile(r"\\(?:left|right)(?=[()\[\]])|\\[,;:! ]|\$|\\[()\[\]]"), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|[×·⋅]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\[dtc]?frac(?![A-Za-z])"), "F"),
)
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/(){}F])")


class _NotAnExpression(ValueError):
    pass


class _Value(NamedTuple):
    value: Fraction | None  # None after a division by zero
    numbers: Counter


def _apply(operator: str, left: _Value, right: _Value) -> _Value:
    numbers = left.numbers + right.numbers
    if left.value is None or right.value is None or (operator == "/" and right.value == 0):
        return _Value(None, numbers)
    if operator == "+":
        return _Value(left.value + right.value, numbers)
    if operator == "-":
        return _Value(left.value - right.value, numbers)
    if operator == "*":
        return _Value(left.value * right.value, numbers)
    return _Value(left.value / right.value, numbers)


def _tokens(text: str) -> list[str]:
    for spelling, replacement in _SPELLINGS:
        text = spelling.sub(replacement, text)
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NotAnExpression(f"unexpected {text[position]!r}")
        tokens.append(match.group(1))
        position = match.end()
    return tokens


class _Parser:
    r"""sum: product (`+-` product)*; product: atom (`*/` atom)*; atom: number, (sum), \frac."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if token is None or (expected is not None and token != expected):
            raise _NotAnExpression(f"expected {expected or 'a number'}, got {token}")
        self.position += 1
        return token

    def whole(self) -> _Value:
        result = self.sum()
        if self.peek() is not None:
            raise _NotAnExpression(f"left over: {self.peek()}")
        return result

    def sum(self) -> _Value:
        result = self.product()
        while self.peek() in ("+", "-"):
            result = _apply(self.take(), result, self.product())
        return result

    def product(self) -> _Value:
        result = self.atom()
        while self.peek() in ("*", "/"):
            result = _apply(self.take(), result, self.atom())
        return result

    def atom(self) -> _Value:
        token = self.take()
        if token == "(":
            return self.group(")")
        if token == "F":
            numerator = self.braced()
            return _apply("/", numerator, self.braced())
        if not token.isdigit():
            raise _NotAnExpression(f"expected a number, got {token}")
        number = int(token)
        return _Value(Fraction(number), Counter([Fraction(number)]))

    def braced(self) -> _Value:
        self.take("{")
        return self.group("}")

    def group(self, closing: str) -> _Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotAnExpression("nested too deeply")
        inner = self.sum()
        self.take(closing)
        self.depth -= 1
        return inner


def extract_countdown(text: str) -> str | None:
    r"""The expression of a response: the last `<answer>…</answer>`, else the last `\boxed{…}`.

    A complete tag decides even when it is blank (None); a box inside the tag is unwrapped.
    """
    if not has_format(text, "answer_tag"):
        return extract(text, "boxed")
    content = extract(text, "answer_tag")
    if content is not None and has_format(content, "boxed"):
        return extract(content, "boxed")
    return content


def compare_countdown(gold: str, prediction: str) -> Verdict:
    r"""Judge an expression against `gold`, a JSON object `{"nums": [3, 5, 7], "target": 15}`.

    Correct when the numbers used are the given ones as a multiset and
    |value - target| < 1e-5. What follows a `=` is cut off. `\times \cdot \div \frac{a}{b}` and
    `× ÷` are read as operators. An expression outside the grammar, longer than 1000 characters or
    nested deeper than 50 is `unparsable`; a division by zero is `wrong`.

    Raises ValueError, KeyError or TypeError on a malformed gold.
    """
    problem = json.loads(gold)
    given = Counter(Fraction(str(number)) for number in problem["nums"])
    target = Fraction(str(problem["target"]))
    if len(prediction) > MAX_LENGTH:
        return Verdict.unparsable
    try:
        result = _Parser(_tokens(prediction.partition("=")[0])).whole()
    except _NotAnExpression:
        return Verdict.unparsable
    if result.value is None or result.numbers != given:
        return Verdict.wrong
    return Verdict.correct if abs(result.value - target) < TOLERANCE else Verdict.wrong
