"""Rows for the second term of the conditional IFD: the answer without its thinking (ISPO, Eq. 2).

Of each rollout only the answer's opening as it was sampled (`\\boxed{`) and the answer's tokens are
kept: prompt ⊕ opening ⊕ answer. Without the opening the term would measure surprise at the format, not
at the answer. These rows are as long as prompt and answer, not as the rollout: that is why the extra
forward pass is cheap. Assembled in NumPy; token ids are the sampled ones.
"""

from collections.abc import Sequence

import numpy as np

from jaxrl_reason.verify import AnswerTokens


def ablated_rows(
    tokens: np.ndarray,
    spans: Sequence[AnswerTokens | None],
    stub: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(row tokens [B,K'], row mask [B,K'], is answer [B,K'], source position [B,K']) of stub ⊕ answer.

    `source` is each answer token's position in the rollout, so that both terms are read in one layout.
    `stub`, if given, replaces the sampled opening. Rows without an answer are empty. K' is rounded up
    to a power of two (at least 8) so that few shapes are compiled.
    """
    rows = []
    for row, span in zip(tokens, spans, strict=True):
        if span is None:
            rows.append(([], [], []))
            continue
        answer = list(range(span.start, span.stop))
        opening = row[span.opening_start : span.start] if stub is None else stub
        ids = [int(t) for t in opening] + [int(row[t]) for t in answer]
        rows.append(
            (ids, [False] * len(opening) + [True] * len(answer), [0] * len(opening) + answer)
        )
    longest = max((len(ids) for ids, _, _ in rows), default=0)
    most = tokens.shape[1] + (0 if stub is None else len(stub))
    length = min(max(8, 1 << max(longest - 1, 0).bit_length()), max(most, 8))
    out = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    is_answer = np.zeros((len(rows), length), bool)
    source = np.zeros((len(rows), length), np.int32)
    for i, (ids, answer, positions) in enumerate(rows):
        n = len(ids)
        out[i, :n], mask[i, :n], is_answer[i, :n], source[i, :n] = ids, True, answer, positions
    return out, mask, is_answer, source
