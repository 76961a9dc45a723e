"""Compare `verify` with a file of collected grader test cases.

    python -m tests.verify.verifier_cases PATH/verifier_cases.jsonl

One JSON object per line: `gold`, `pred`, `expected` (bool), `mode` (`equiv` is plain mathematical
equivalence, other modes pin one grader's habits) and, where known, `math_verify_0_9_0`, what that
release returns for the case.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from jaxrl_reason.verify import Verdict, VerifierPool, extract_answer

Case = dict
RELEASE = "math_verify_0_9_0"


def read(path: str | Path) -> list[Case]:
    """The cases of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def judge(cases: list[Case], pool: VerifierPool) -> list[tuple[Case, Verdict]]:
    """Each case with its verdict."""
    items = [("math", case["gold"], extract_answer(case["pred"])) for case in cases]
    return list(zip(cases, pool.verify(items), strict=True))


def agrees(case: Case, verdict: Verdict) -> bool:
    """Whether the verdict accepts exactly what the case expects to be accepted."""
    return (verdict is Verdict.correct) == case["expected"]


def kind_of_disagreement(case: Case) -> str:
    """A coarse reason, for grouping."""
    gold, prediction = case["gold"], case["pred"]
    if case["mode"] != "equiv":
        return f"habit of one grader ({case['mode']})"
    if prediction.count(r"\boxed") > 1:
        return "several boxes: only the last one is the answer"
    if r"\boxed" in prediction:
        return "the box is not the final answer"
    if gold.count(r"\boxed") > 1:
        return "several boxes in the gold"
    if case.get("precision") or case.get("strict") is False:
        return "looser setting of the grader"
    if "\n" in prediction and len(prediction) < 30:
        return "line break inside a formula"
    if re.fullmatch(r"\d+,\d+", prediction):
        return "decimal comma"
    return "reading of the text"


def _print_table(judged: list[tuple[Case, Verdict]]) -> None:
    print(f"{'mode':28}{'agree':>7}{'cases':>7}   {RELEASE} agrees / known")
    for mode, total in Counter(case["mode"] for case, _ in judged).most_common():
        of_mode = [(case, verdict) for case, verdict in judged if case["mode"] == mode]
        agreeing = sum(agrees(case, verdict) for case, verdict in of_mode)
        known = [case for case, _ in of_mode if RELEASE in case]
        reference = sum(case[RELEASE] == case["expected"] for case in known)
        print(f"{mode:28}{agreeing:>7}{total:>7}   {reference} / {len(known)}")
    same = Counter(
        (verdict is Verdict.correct) == case[RELEASE] for case, verdict in judged if RELEASE in case
    )
    print(f"\nsame as {RELEASE}: {same[True]} of {same.total()}")
    print("verdicts:", dict(Counter(str(verdict) for _, verdict in judged)))


def _print_disagreements(judged: list[tuple[Case, Verdict]]) -> None:
    disagreeing = [(case, verdict) for case, verdict in judged if not agrees(case, verdict)]
    disagreeing.sort(key=lambda pair: kind_of_disagreement(pair[0]))
    for case, verdict in disagreeing:
        expected = "correct" if case["expected"] else "not correct"
        print(
            f"\n[{kind_of_disagreement(case)}] {case.get('id', '')}: {verdict}, expected {expected}"
            f"\n  gold {case['gold'][-90:]!r}\n  pred {case['pred'][-90:]!r}"
        )


def main(path: str) -> None:
    """Judge the file and print the table and every disagreement."""
    with VerifierPool(num_workers=2, timeout_s=20) as pool:
        judged = judge(read(path), pool)
    _print_table(judged)
    _print_disagreements(judged)


if __name__ == "__main__":
    main(sys.argv[1])
