"""Where the final answer of a response is: its text, and the tokens that hold it.

Everything is found on UTF-8 bytes, because a token may hold only part of a character. All scans
take linear time, also on thousands of openings that never close.
"""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple


class AnswerTokens(NamedTuple):
    """Token indices of an answer. `[opening_start, start)` is the stub, `[start, stop)` the answer.

    `opening_start == start` when one token holds the whole opening and the first content.
    """

    opening_start: int
    start: int
    stop: int


class _Found(NamedTuple):
    """Byte offsets: first byte of the opening, first byte of the content, end of the content."""

    opening: int
    start: int
    stop: int


# `\\boxed{` (a doubly escaped opening) counts; any other backslash escapes the next character.
_BOX_TOKEN = re.compile(rb"\\?(\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_ANSWER_TAG = re.compile(rb"<(/?)answer>")
_ANSWER_LINE = re.compile(rb"(?i)Answer\s*:\s*([^\n]+)")
# Only a number: `#### Step 2` is a Markdown heading.
_HASH = re.compile(rb"(?<!#)####[ \t]*([-+]?\$?[-+]?(?:\d[\d,]*)?(?:\.?\d+)(?:/\d+)?)")


def _find_boxed(data: bytes) -> _Found | None:
    last = None
    open_braces: list[tuple[int, int] | None] = []  # (opening, start) of a box, None of a plain {
    for token in _BOX_TOKEN.finditer(data):
        if token.group(1):
            open_braces.append((token.start(1), token.end(1)))
        elif token.group() == b"{":
            open_braces.append(None)
        elif token.group() == b"}" and open_braces:
            box = open_braces.pop()
            if box and (last is None or box[0] > last.opening):
                last = _Found(*box, token.start())
    return last


def _find_answer_tag(data: bytes) -> _Found | None:
    last = opening = None
    for tag in _ANSWER_TAG.finditer(data):
        if not tag.group(1):
            opening = tag
        elif opening is not None:
            last = _Found(opening.start(), opening.end(), tag.start())
            opening = None
    return last


def _find_last(pattern: re.Pattern[bytes]) -> Callable[[bytes], _Found | None]:
    def find(data: bytes) -> _Found | None:
        last = next(iter(deque(pattern.finditer(data), maxlen=1)), None)
        return _Found(last.start(), *last.span(1)) if last else None

    return find


_FINDERS: dict[str, Callable[[bytes], _Found | None]] = {
    "boxed": _find_boxed,
    "answer_tag": _find_answer_tag,
    "answer_line": _find_last(_ANSWER_LINE),
    "hash": _find_last(_HASH),
}
FORMATS = tuple(_FINDERS)
_PLACES = {
    "boxed": "\\boxed{{{}}}",
    "answer_tag": "<answer>{}</answer>",
    "answer_line": "Answer: {}",
    "hash": "#### {}",
}


def _find(data: bytes, fmt: str) -> _Found | None:
    if fmt not in _FINDERS:
        raise ValueError(f"unknown answer format {fmt!r}; known: {', '.join(_FINDERS)}")
    return _FINDERS[fmt](data)


def _encode(piece: str | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")


def _content(data: bytes, found: _Found) -> str:
    return data[found.start : found.stop].decode("utf-8", "replace").strip()


def extract(text: str, fmt: str = "boxed") -> str | None:
    r"""The final answer of a response, stripped of surrounding whitespace.

    Formats: `boxed` is the last `\boxed{…}` whose braces balance (`\{` and `\}` are no braces),
    `answer_tag` the last `<answer>…</answer>`, `answer_line` the rest of the line after the last
    `Answer:`, `hash` the number after the last `####`.

    Returns None when there is no such place, or when the last one is blank (an earlier one does
    not stand in for it). Raises ValueError on an unknown format.
    """
    data = _encode(text)
    found = _find(data, fmt)
    return (_content(data, found) or None) if found else None


def has_format(text: str, fmt: str = "boxed") -> bool:
    """Whether the response has a complete answer place, also an empty one (format rate)."""
    return _find(_encode(text), fmt) is not None


def answer_tokens(
    pieces: Sequence[str] | Sequence[bytes], fmt: str = "boxed"
) -> AnswerTokens | None:
    r"""The tokens of the final answer and of its opening.

    `pieces` has one string (or its UTF-8 bytes) per token; joined they are the response. A token
    belongs to the answer when it overlaps the content by at least one byte, so `{4` and `4}` do.
    `opening_start` is the token that holds the first character of the opening (`\boxed{`).

    Returns None where `extract` does. Raises ValueError on an unknown format.
    """
    encoded = [_encode(piece) for piece in pieces]
    data = b"".join(encoded)
    found = _find(data, fmt)
    if found is None or not _content(data, found):
        return None
    token_starts = list(accumulate(map(len, encoded), initial=0))
    # bisect_right skips empty tokens: the last token that starts at or before a byte holds it.
    return AnswerTokens(
        opening_start=bisect_right(token_starts, found.opening) - 1,
        start=bisect_right(token_starts, found.start) - 1,
        stop=bisect_left(token_starts, found.stop),
    )


def answer_span(
    pieces: Sequence[str] | Sequence[bytes], fmt: str = "boxed"
) -> tuple[int, int] | None:
    """Half-open token range `(start, stop)` that overlaps the answer's content, or None.

    The answer span A of ISPO; see `answer_tokens` for what counts as overlap.
    """
    tokens = answer_tokens(pieces, fmt)
    return (tokens.start, tokens.stop) if tokens else None


def write_answer(answer: str, fmt: str = "boxed") -> str:
    """An answer in the place where `extract` finds it. Raises ValueError on an unknown format."""
    if fmt not in _PLACES:
        raise ValueError(f"unknown answer format {fmt!r}; known: {', '.join(_PLACES)}")
    return _PLACES[fmt].format(answer)
