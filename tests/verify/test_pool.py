import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from jaxrl_reason.verify import PoolClosed, Verdict, VerifierPool, WorkerStartError, process
from tests.verify.faulty import is_alive

REPOSITORY = Path(__file__).resolve().parents[2]
PLANTED = "tests.verify.faulty:"
LONG_S = 60.0  # only ends a test that hangs
SOUND_ITEMS = [("math", "5", "5"), ("math", "5", "6"), (PLANTED + "same_text", "a", "a")]
SOUND_VERDICTS = [Verdict.correct, Verdict.wrong, Verdict.correct]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(num_workers=2, timeout_s=10.0, memory_gib=1.0) as pool:
        yield pool


def wait_until(condition, limit_s=LONG_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "condition never came true"
        time.sleep(0.05)


def test_verdicts_come_in_the_order_of_the_items(pool):
    items = [("math", str(i), str(i + i % 3)) for i in range(60)]
    expected = [Verdict.wrong if i % 3 else Verdict.correct for i in range(60)]
    assert pool.verify(items) == expected


def test_no_items_and_no_answers_need_no_worker(pool):
    assert pool.verify([]) == []
    assert pool.verify([("math", "5", None)] * 3) == [Verdict.unparsable] * 3


def test_equal_items_are_judged_once_and_counted_each(pool, tmp_path):
    journal = str(tmp_path / "pids")
    item = (PLANTED + "worker_pid_to_file", journal, "b")
    assert pool.verify([item, ("math", "1", "1"), item, item]) == [
        Verdict.wrong,
        Verdict.correct,
        Verdict.wrong,
        Verdict.wrong,
    ]
    assert len(Path(journal).read_text().split()) == 1


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("hang", Verdict.timeout),
        ("hang_in_c", Verdict.timeout),
        ("ignore_every_signal", Verdict.timeout),
        ("exit_at_once", Verdict.error),
        ("raise_system_exit", Verdict.error),
        ("segfault", Verdict.error),
        ("eat_memory", Verdict.error),
        ("raise_error", Verdict.error),
        ("no_such_function", Verdict.error),
        ("print_a_reply", Verdict.wrong),
    ],
)
def test_a_fault_costs_its_own_item_only(pool, fault, verdict):
    items = [*SOUND_ITEMS, (PLANTED + fault, "a", "a"), *SOUND_ITEMS]
    # Eating a gibibyte may take a while; hanging is what the short limit is for.
    timeout_s = 1.0 if verdict is Verdict.timeout else 30.0
    verdicts = [pool.submit([item], timeout_s) for item in items]
    assert [future.result(LONG_S)[0] for future in verdicts] == [
        *SOUND_VERDICTS,
        verdict,
        *SOUND_VERDICTS,
    ]


def test_a_number_too_big_for_sympy_is_a_timeout(pool):
    items = [("math", "9", "9^{9^{9^{9}}}"), ("math", r"\sqrt{8}", r"2\sqrt{2}")]
    assert pool.verify(items, timeout_s=2.0) == [Verdict.timeout, Verdict.correct]


def test_several_threads_at_once(pool):
    outcomes = {}

    def use(name):
        items = [("math", str(name), str(name + i % 2)) for i in range(20)]
        outcomes[name] = pool.verify(items)

    threads = [threading.Thread(target=use, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert outcomes == {name: [Verdict.correct, Verdict.wrong] * 10 for name in range(6)}


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (("physics", "5", "5"), ValueError),
        (("math", 5, "5"), TypeError),
        (("math", "5", 5), TypeError),
    ],
)
def test_impossible_items_are_refused(pool, item, error):
    with pytest.raises(error):
        pool.submit([item])


def test_a_worker_killed_while_idle_costs_nothing(tmp_path):
    journal = tmp_path / "pids"
    with VerifierPool(num_workers=1) as pool:
        pool.verify([(PLANTED + "worker_pid_to_file", str(journal), "b")])
        os.kill(int(journal.read_text()), signal.SIGKILL)
        wait_until(lambda: not is_alive(int(journal.read_text())))
        assert pool.verify(SOUND_ITEMS) == SOUND_VERDICTS


def test_close_while_busy(tmp_path):
    journal = tmp_path / "pids"
    pool = VerifierPool(num_workers=2, timeout_s=LONG_S)
    hanging = (PLANTED + "worker_pid_to_file_and_hang", str(journal), "b")
    futures = [pool.submit([hanging]), pool.submit([hanging]), pool.submit(SOUND_ITEMS)]
    wait_until(lambda: journal.exists() and len(journal.read_text().splitlines()) == 2)
    closers = [threading.Thread(target=pool.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(LONG_S)
        assert not closer.is_alive()
    assert not wait(futures, LONG_S).not_done
    for future in futures:
        assert isinstance(future.exception(), PoolClosed)
    assert not any(is_alive(int(pid)) for pid in journal.read_text().split())
    pool.close()
    with pytest.raises(PoolClosed):
        pool.submit(SOUND_ITEMS)


def test_close_before_workers_are_ready():
    pool = VerifierPool(num_workers=2)
    future = pool.submit(SOUND_ITEMS)
    pool.close()
    assert isinstance(future.exception(LONG_S), PoolClosed)


def test_close_from_a_callback_does_not_deadlock():
    pool = VerifierPool(num_workers=1)
    closed = threading.Event()
    future = pool.submit(SOUND_ITEMS)
    future.add_done_callback(lambda _: (pool.close(), closed.set()))
    assert closed.wait(LONG_S)
    assert future.result() == SOUND_VERDICTS


def test_workers_that_cannot_start_say_why(monkeypatch, tmp_path):
    broken = tmp_path / "broken" / "math_verify"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('planted: no SymPy here')")
    monkeypatch.syspath_prepend(str(broken.parent))
    with VerifierPool(num_workers=1) as pool:
        with pytest.raises(WorkerStartError, match="planted: no SymPy here"):
            pool.verify(SOUND_ITEMS)
        with pytest.raises(WorkerStartError):
            pool.submit(SOUND_ITEMS)


def test_missing_interpreter_is_a_start_error(monkeypatch):
    monkeypatch.setattr(process.sys, "executable", "/nowhere/python")
    with VerifierPool(num_workers=1) as pool, pytest.raises(WorkerStartError, match="nowhere"):
        pool.verify(SOUND_ITEMS)


def start_script(source, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


HANGING_SCRIPT = """
import sys
from jaxrl_reason.verify import VerifierPool
pool = VerifierPool(num_workers=2, timeout_s=float(sys.argv[2]))
hanging = "tests.verify.faulty:worker_pid_to_file_and_hang"
pool.verify([(hanging, sys.argv[1], str(i)) for i in range(2)])
"""


def hanging_script(journal, timeout_s):
    script = start_script(HANGING_SCRIPT, journal, timeout_s)
    wait_until(lambda: journal.exists() and len(journal.read_text().splitlines()) == 2)
    return script, [int(pid) for pid in journal.read_text().split()]


def test_ctrl_c_ends_the_script_and_its_workers(tmp_path):
    script, pids = hanging_script(tmp_path / "pids", timeout_s=600)
    script.send_signal(signal.SIGINT)
    _, stderr = script.communicate(timeout=LONG_S)
    assert b"KeyboardInterrupt" in stderr
    assert script.returncode != 0
    assert not any(is_alive(pid) for pid in pids)


def test_workers_of_a_killed_parent_end_by_their_own_timer(tmp_path):
    script, pids = hanging_script(tmp_path / "pids", timeout_s=2)
    script.kill()
    script.communicate(timeout=LONG_S)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_script_that_forgets_to_close_still_ends():
    source = "from jaxrl_reason.verify import *; VerifierPool(2); print(verify('1/2', '0.5'))"
    stdout, stderr = start_script(source).communicate(timeout=LONG_S)
    assert stdout.strip() == b"correct"
    assert not stderr


def test_importing_the_package_is_light():
    source = "import sys, jaxrl_reason.verify; print({'jax', 'numpy', 'sympy'} & set(sys.modules))"
    stdout, _ = start_script(source).communicate(timeout=LONG_S)
    assert stdout.strip() == b"set()"


def test_a_forked_child_is_told(pool):
    child = os.fork()
    if child == 0:
        try:
            pool.close()  # must not kill the parent's workers
            pool.submit(SOUND_ITEMS)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert pool.verify(SOUND_ITEMS) == SOUND_VERDICTS
