r"""Are two mathematical answers equivalent? A thin layer over math_verify, gold first.

Plain numbers are decided here, exactly and without SymPy. Everything else is read by math_verify,
whose comparison is not symmetric (a gold `x = 5` accepts `5`, a gold `a + 3z = 0` does not accept
`0`). Its own time limits rest on SIGALRM and score a time-out as wrong, so they are off: run this
inside a `VerifierPool`.
"""

import logging
import re
from dataclasses import replace
from fractions import Fraction
from itertools import product

import sympy
from math_verify import LatexExtractionConfig, parse
from math_verify import verify as sympy_equal

from jaxrl_reason.verify.verdict import Verdict

# math_verify warns once per process that its time limits are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TO_LATEX = str.maketrans(
    dict.fromkeys("−–", "-")
    | dict.fromkeys("·⋅", r"\cdot ")
    | {"×": r"\times ", "÷": r"\div ", "±": r"\pm ", "√": r"\sqrt ", "π": r"\pi "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "°": r"^\circ "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
    | {"²": "^{2}", "³": "^{3}", "，": ",", "（": "(", "）": ")"}
)

_NUMBER = re.compile(
    r"(?P<sign>[+-]?) ?\$?(?P<digits>(?:[1-9]\d{0,2}(?:[, ]\d{3})+|\d{1,100})(?:\.\d{0,100})?"
    r"|\.\d{1,100})(?:[eE](?P<exponent>[+-]?\d{1,3}))?"
)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?) ?(?:\\[dtc]?frac ?\{ ?(\d{1,30}) ?\} ?\{ ?(\d{1,30}) ?\}|"
    r"(\d{1,30}) ?/ ?(\d{1,30}))"
)
_PERCENT = r"\\?%|percent(?:age)?\b|pct\b"
_MIXED_NUMBER = re.compile(
    r"(?<![\d.,/^_{])(?P<whole>\d{1,30}) +(?P<numerator>\d{1,30})/(?P<denominator>\d{1,30})"
    rf"(?![\d,/]|\.\d)(?P<percent> *(?:{_PERCENT}))?"
)
# math_verify finds a number only after a space, which Chinese does not put there.
_NEXT_TO_OTHER_SCRIPT = re.compile(r"(?<=[^\x00-\x7f])(?=[-\d$\\])|(?<=[\d$])(?=[^\x00-\x7f])")

# Prose is searched for the formula in it; anything else is read as one formula. Without the
# distinction `the answer` is a product of letters, and `2abc` is an answer of 2.
_PROSE_CUE = re.compile(r"(?i)(?<![\\a-z])(?:answer|is|the|are|thus|therefore|so|final)(?![a-z])")
_WORD = re.compile(r"(?<![\w\\^{(*/+=-])[A-Za-z]{3,}(?![\w^}({*/+=-])")
_NOT_PROSE = re.compile(
    r"\\(?:text|math|operatorname|mbox)[a-z]*\s*\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}"
    r"|\\[A-Za-z]+|(?<![a-z])(?:and|sin|cos|tan|log|exp|sqrt|max|min|inf|infinity|pct|percent)(?![a-z])"
)

_LAST_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z]$")
# Longer ones are runs of a repeated token, on which the parser spends its whole time limit.
MAX_FORMULA_LENGTH = 1000

Reading = sympy.Basic | sympy.MatrixBase | str


def _tidy(text: str) -> str:
    text = _MIXED_NUMBER.sub(_improper_fraction, text.translate(_TO_LATEX))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?<=\d)\.(?=/)", "", text)  # -3./2
    text = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?:[.,;]|(?<!\\)\\) ?$", "", text).strip()
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        wrapped = text.startswith(opening) and text.endswith(closing)
        if wrapped and inner.strip() and opening not in inner and closing not in inner:
            return _tidy(inner)
    return text


def _improper_fraction(mixed: re.Match[str]) -> str:
    whole, numerator, denominator = (
        int(mixed[part]) for part in ("whole", "numerator", "denominator")
    )
    if numerator >= denominator:
        return mixed.group()
    hundredths = 100 if mixed["percent"] else 1
    return f"{whole * denominator + numerator}/{denominator * hundredths}"


def _canonical(text: str) -> str:
    """A spelling for the string comparison: fonts, sizes and spaces of LaTeX do not matter."""
    text = re.sub(
        r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\\(?:quad|displaystyle)\b|\\?\$", " ", text
    )
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text.strip())
    # A space between two digits means something: 4 4/9 is not 44/9.
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    return text.casefold() if text.isalpha() and len(text) > 2 else text


def _plain_number(text: str) -> tuple[Fraction, bool] | None:
    """The value of a bare number or fraction, and whether it was written as a decimal."""
    text = re.sub(r"\\!\s*|\\,", "", text).replace("{,}", ",")
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = (int(part) for part in match.groups()[1:] if part)
        if denominator == 0:
            return None
        value = Fraction(numerator, denominator)
        return (-value if match["sign"] == "-" else value), False
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").replace(" ", "")
    value = Fraction(digits.rstrip(".")) * Fraction(10) ** int(match["exponent"] or 0)
    is_decimal = "." in digits or match["exponent"] is not None
    return (-value if match["sign"] == "-" else value), is_decimal


def _numbers_agree(gold: Fraction, prediction: Fraction, either_is_decimal: bool) -> bool:
    """Exact; to six decimals where one side is a decimal; a small gold to four digits."""
    if gold == prediction or not either_is_decimal:
        return gold == prediction
    if abs(gold) < Fraction(1, 100):
        return abs(gold - prediction) <= abs(gold) / 10_000
    return round(gold, 6) == round(prediction, 6)


def _is_prose(text: str) -> bool:
    if "$" in text.replace(r"\$", "") or r"\(" in text or r"\[" in text or r"\boxed" in text:
        return True
    rest = _NOT_PROSE.sub(" ", text)
    if any(char.isalpha() and not char.isascii() for char in rest):
        return True
    return bool(_PROSE_CUE.search(rest)) or len(_WORD.findall(rest)) >= 2


def _readings(text: str) -> list[Reading]:
    """What the text can mean: SymPy objects, then math_verify's normalised string."""
    if _is_prose(text):
        spaced = _NEXT_TO_OTHER_SCRIPT.sub(" ", text)
        found = parse(spaced, parsing_timeout=None, raise_on_error=True)
    else:
        found = _read_formula(text)
        number = _plain_number(text)
        if number and re.search(r"[eE ]", text):  # LaTeX reads 2e-6 as 2·e − 6 and 1 000 as 1·0
            value = sympy.Float(sympy.Rational(*number[0].as_integer_ratio()))
            found = [value] + (found if "e" in text.lower() else [])
    return [reading for reading in found if isinstance(reading, str) or not _is_undefined(reading)]


def _read_formula(text: str) -> list[Reading]:
    if len(text) > MAX_FORMULA_LENGTH:
        return []
    # math_verify drops units, and its units include t, m and s: 3t would be 3, and sin^2 t
    # nothing. A bare letter at the end is a variable unless it can only be read as a unit.
    units_first = _LAST_LETTER.search(text) is None
    found = []
    for units in (units_first, not units_first):
        normalization = replace(LatexExtractionConfig().normalization_config, units=units)
        # Only LaTeX: the expression fallback of math_verify would read `16\sqrt{3}+` as 16.
        config = LatexExtractionConfig(normalization_config=normalization)
        found = parse(f"${text}$", [config], parsing_timeout=None, raise_on_error=True)
        if not all(isinstance(reading, str) for reading in found):
            break
    return found


def _is_undefined(expression: sympy.Basic | sympy.MatrixBase) -> bool:
    if expression.has(sympy.nan, sympy.zoo):
        return True
    return any(
        power.base.is_zero and power.exp.is_negative for power in expression.atoms(sympy.Pow)
    )


def _too_far_for_six_decimals(gold: Reading, prediction: Reading) -> bool:
    """math_verify rounds to six decimals, where all numbers below 5e-7 are one."""
    if not (isinstance(gold, sympy.Expr) and isinstance(prediction, sympy.Expr)):
        return False
    if not (gold.is_number and prediction.is_number) or gold.has(sympy.UnevaluatedExpr):
        return False  # a percentage is unevaluated, and 10% may equal 10
    gold_value, predicted_value = complex(gold.evalf()), complex(prediction.doit().evalf())
    if abs(gold_value) >= 1e-2:
        return False
    return abs(gold_value - predicted_value) > max(1e-4 * abs(gold_value), 1e-60)


def _equivalent(gold: Reading, prediction: Reading) -> bool:
    equal = sympy_equal(
        gold,
        prediction,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )
    return equal and not _too_far_for_six_decimals(gold, prediction)


def compare_math(gold: str, prediction: str) -> Verdict:
    r"""Judge a final answer against the reference. Runs in this process, without a time limit.

    Both are bare answers as they stand in a box (`\frac{1}{2}`, `x=5`, `1,2`, `2.7778e-6`,
    `\text{Monday}`), with or without `$`; a sentence is searched for the last formula in it.
    Numbers are equal exactly, or to six decimals where one of them is a decimal (below 1e-2 to
    four significant digits). `10%` equals `10` and `5\text{ cm}` equals `5`, as in math_verify.

    Returns `unparsable` when nothing in the prediction can be read, or it is a formula of more
    than 1000 characters. When nothing in the gold can, the texts are compared as strings.
    Raises ValueError on a blank gold, and whatever SymPy raises (a worker reports both as
    `error`).
    """
    gold, prediction = _tidy(gold), _tidy(prediction)
    if not gold:
        raise ValueError("blank gold answer")
    if not prediction:
        return Verdict.unparsable
    if _canonical(gold) == _canonical(prediction):
        return Verdict.correct
    gold_number, predicted_number = _plain_number(gold), _plain_number(prediction)
    if gold_number and predicted_number:
        either_is_decimal = gold_number[1] or predicted_number[1]
        agree = _numbers_agree(gold_number[0], predicted_number[0], either_is_decimal)
        return Verdict.correct if agree else Verdict.wrong
    return _compare_readings(gold, prediction)


def _compare_readings(gold: str, prediction: str) -> Verdict:
    gold_readings = _readings(gold)
    if all(isinstance(reading, str) for reading in gold_readings):
        same = _canonical(gold).casefold() == _canonical(prediction).casefold()
        return Verdict.correct if same else Verdict.wrong
    predicted_readings = _readings(prediction)
    if any(_equivalent(*pair) for pair in product(gold_readings, predicted_readings)):
        return Verdict.correct
    if all(isinstance(reading, str) for reading in predicted_readings):
        return Verdict.unparsable
    return Verdict.wrong
