"""Planted comparisons that misbehave, named to the pool as `tests.verify.faulty:hang` and so on."""

import ctypes
import os
import signal
import sys
import time

from jaxrl_reason.verify.verdict import Verdict


def same_text(gold: str, prediction: str) -> Verdict:
    return Verdict.correct if gold == prediction else Verdict.wrong


def hang(gold: str, prediction: str) -> Verdict:
    while True:
        pass


def hang_in_c(gold: str, prediction: str) -> Verdict:
    # One bytecode that holds the interpreter for minutes: no Python signal handler would run.
    return same_text(str(3 ** (10**9) % 7), prediction)


def ignore_every_signal(gold: str, prediction: str) -> Verdict:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)
    return Verdict.correct


def exit_at_once(gold: str, prediction: str) -> Verdict:
    os._exit(0)


def raise_system_exit(gold: str, prediction: str) -> Verdict:
    sys.exit("not an Exception")


def segfault(gold: str, prediction: str) -> Verdict:
    ctypes.string_at(0)
    return Verdict.correct


def eat_memory(gold: str, prediction: str) -> Verdict:
    blocks = []
    while True:
        blocks.append(bytearray(2**26))


def raise_error(gold: str, prediction: str) -> Verdict:
    raise RuntimeError("planted")


def print_a_reply(gold: str, prediction: str) -> Verdict:
    print('{"verdict": "correct"}', flush=True)
    os.write(1, b'{"verdict": "correct"}\n')
    return Verdict.wrong


def worker_pid_to_file(gold: str, prediction: str) -> Verdict:
    with open(gold, "a") as file:
        file.write(f"{os.getpid()}\n")
    return same_text(gold, prediction)


def worker_pid_to_file_and_hang(gold: str, prediction: str) -> Verdict:
    worker_pid_to_file(gold, prediction)
    return hang_in_c(gold, prediction)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody has reaped does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
