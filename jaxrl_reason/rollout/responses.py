"""Reading completions: their text, their answer, and the tokens it stands in."""

import dataclasses

import numpy as np

from jaxrl_reason.data.tokenizer import Tokenizer
from jaxrl_reason.types import Rollouts
from jaxrl_reason.verify import AnswerTokens, answer_tokens, extract, extract_countdown, has_format


@dataclasses.dataclass(frozen=True)
class Response:
    """One completion. `thinking`: it answers, and tokens stand before the answer's opening."""

    text: str
    answer: str | None
    span: AnswerTokens | None
    has_format: bool
    thinking: bool


def read_responses(
    rollouts: Rollouts, tokenizer: Tokenizer, answer_format: str, kinds: list[str]
) -> list[Response]:
    """Responses of host rollouts, from the sampled ids; special tokens are not part of the text.

    `kinds` names each row's verifier: a Countdown answer may also stand in `<answer>` tags.
    """
    special = set(tokenizer.special.values())
    responses = []
    for row, length, kind in zip(
        np.asarray(rollouts.tokens), np.asarray(rollouts.lengths), kinds, strict=True
    ):
        ids = row[:length]
        pieces = [
            b"" if int(i) in special else piece
            for i, piece in zip(ids, tokenizer.token_bytes(ids), strict=True)
        ]
        text = b"".join(pieces).decode(errors="replace")
        # a Countdown answer in tags beats one in a box
        tagged = kind == "countdown" and has_format(text, "answer_tag")
        form = "answer_tag" if tagged else answer_format
        span = answer_tokens(pieces, form)
        answer = extract_countdown(text) if kind == "countdown" else extract(text, form)
        thinking = span is not None and any(p.strip() for p in pieces[: span.opening_start])
        responses.append(Response(text, answer, span, has_format(text, form), thinking))
    return responses
