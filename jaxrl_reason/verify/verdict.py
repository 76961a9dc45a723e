"""The outcome of one comparison."""

from enum import StrEnum


class Verdict(StrEnum):
    """What became of one (gold, prediction) pair. Only `correct` earns a reward.

    The other four are counted apart: a wrong answer says something about the policy, a time-out
    or an error says something about the verifier.
    """

    correct = "correct"
    wrong = "wrong"
    unparsable = "unparsable"
    timeout = "timeout"
    error = "error"

    def __str__(self) -> str:
        return self.value
