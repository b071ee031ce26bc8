"""Worker processes: order, read-ahead, errors, and that none is left behind."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grw_keras.data.video import BadVideoError
from grw_keras.data.workers import WorkerDiedError, default_workers, in_order

SCRIPT = """
from grw_keras.data.workers import in_order
def square(x):
    return x * x
print(list(in_order(square, range(5), 2)))
"""
KILLED = """
import itertools, os, time
from grw_keras.data.workers import in_order
def pid(x):
    return os.getpid()
results = in_order(pid, itertools.count(), 2)
print(*{next(results) for _ in range(200)}, flush=True)
time.sleep(60)
"""


def slow_first(x: int) -> int:
    time.sleep(0.1 if x % 4 == 0 else 0)
    return -x


def pid(_) -> int:
    return os.getpid()


def pid_of_the_first_30(x: int) -> int:
    time.sleep(60 if x >= 30 else 0)
    return os.getpid()


def fail_at_3(x: int) -> int:
    if x == 3:
        raise BadVideoError("three.mp4", "it is torn")
    return x


def die_at_3(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def surroundings(_) -> tuple:
    heavy = {"tensorflow", "tf_keras", "keras"} & set(sys.modules)
    return heavy, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def gone(pids, timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(in_order(slow_first, range(9), workers)) == [-x for x in range(9)]


def test_no_workers_means_this_process():
    assert set(in_order(pid, range(3), 0)) == {os.getpid()}


def test_reading_ahead_is_bounded_with_endless_items():
    taken = []
    items = (taken.append(i) or i for i in itertools.count())
    results = in_order(pid, items, 1, ahead=3)
    pids = set()
    for number in range(1, 6):
        pids.add(next(results))
        assert len(taken) == number + 2
    results.close()
    assert gone(pids)


@pytest.mark.parametrize("end", ["drop", "exhaust"])
def test_no_process_is_left_when_results_are_no_longer_wanted(end):
    items = range(30) if end == "exhaust" else itertools.count()
    results = in_order(pid_of_the_first_30, items, 2)
    pids = {next(results) for _ in range(25)}
    assert os.getpid() not in pids
    if end == "exhaust":
        pids |= set(results)
    del results
    assert gone(pids)


def test_a_workers_error_reaches_the_caller_behind_the_results_before_it():
    results = in_order(fail_at_3, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadVideoError, match=r"three\.mp4: it is torn"):
        next(results)


def test_a_killed_worker_is_told_with_what_was_under_way():
    results = in_order(die_at_3, range(40), 1, ahead=3, name="video {}".format)
    with pytest.raises(
        WorkerDiedError, match=r"SIGKILL\(-9\).*one of video 3, .*use fewer workers"
    ) as caught:
        list(results)
    assert "video 2" not in str(caught.value)
    assert "video 9" not in str(caught.value)


def test_workers_start_without_tensorflow_and_leave_signals_to_the_parent():
    [(heavy, *handlers)] = in_order(surroundings, [0], 1)
    assert heavy == set()
    assert handlers == [signal.SIG_IGN] * 2


@pytest.mark.parametrize("how", ["script", "command"])
def test_scripts_need_no_main_guard(how, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    program = ["script.py"] if how == "script" else ["-c", SCRIPT]
    ran = subprocess.run(
        [sys.executable, *program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (0, "[0, 1, 4, 9, 16]\n"), ran.stderr


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed():
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert pids
    assert gone(pids)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match=r"`workers` must be >= 0\. Received: -1"):
        list(in_order(pid, [1], -1))


def test_there_is_a_worker_for_each_cpu_that_may_be_used():
    limits = [len(os.sched_getaffinity(0))]
    of_container = Path("/sys/fs/cgroup/cpu.max")
    if of_container.exists():
        quota, period = of_container.read_text().split()
        limits += [] if quota == "max" else [math.ceil(int(quota) / int(period))]
    assert default_workers() == min(limits)
