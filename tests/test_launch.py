"""Starting several local workers, and ending with them: no TensorFlow in these."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from grw_keras.training import launch
from grw_keras.training.launch import launch_local

# Every worker gives up by itself, so that no mistake here leaves one behind.
HEAD = "import faulthandler, json, os, signal, sys, time; faulthandler.dump_traceback_later(30, \
exit=True)\nindex = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"


def program(body: str) -> list[str]:
    return [sys.executable, "-c", HEAD + body]


def wait_for(condition, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_workers_find_each_other_by_tf_config(tmp_path):
    body = "print(os.environ['TF_CONFIG'], os.environ['MINE'], os.environ['PYTHONUNBUFFERED'])"
    assert launch_local(2, program(body), environ={"MINE": "yes"}, log_folder=tmp_path) == 0
    for index in (0, 1):
        config, mine, unbuffered = (tmp_path / f"worker-{index}.log").read_text().rsplit(" ", 2)
        assert (mine, unbuffered) == ("yes", "1\n")
        config = json.loads(config)
        assert config["task"] == {"type": "worker", "index": index}
        hosts, ports = zip(*(w.split(":") for w in config["cluster"]["worker"]), strict=True)
        assert hosts == ("127.0.0.1", "127.0.0.1")
        assert len(set(ports)) == 2


def test_given_ports_are_taken(tmp_path):
    body = "print(json.loads(os.environ['TF_CONFIG'])['cluster']['worker'])"
    assert launch_local(2, program(body), ports=[1234, 1235], log_folder=tmp_path) == 0
    assert (tmp_path / "worker-1.log").read_text() == "['127.0.0.1:1234', '127.0.0.1:1235']\n"


def test_lines_are_told_apart_by_their_worker(capsys):
    assert launch_local(2, program("print('I am', index); print('last', end='')")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == ["[0] I am 0", "[0] last", "[1] I am 1", "[1] last"]


def test_first_failure_ends_the_others_and_is_reported(tmp_path, capsys):
    body = """
if index == 1:
    print("\\n".join(f"line {n}" for n in range(100)))
    sys.exit(7)
time.sleep(60)
"""
    start = time.monotonic()
    assert launch_local(3, program(body), log_folder=tmp_path, grace_s=20) == 7
    assert time.monotonic() - start < 15
    error = capsys.readouterr().err
    assert error.startswith("Worker 1 of 3 ended with code 7. The end of its output:\n")
    assert error.endswith("line 98\nline 99\n")
    assert error.count("\n") == 1 + launch.TAIL_LINES


def test_a_worker_that_ignores_sigterm_and_its_children_are_killed(tmp_path):
    body = f"""
import subprocess
if index == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "30"])
    open(r"{tmp_path}/pids", "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(60)
while not os.path.exists(r"{tmp_path}/pids") or not os.path.getsize(r"{tmp_path}/pids"):
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""
    start = time.monotonic()
    assert launch_local(2, program(body), log_folder=tmp_path, grace_s=0.2) == 128 + 9
    assert time.monotonic() - start < 4
    for pid in (tmp_path / "pids").read_text().split():
        wait_for(lambda pid=pid: not alive(int(pid)))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


LAUNCHER = """
import sys
from grw_keras.training.launch import launch_local
sys.exit(launch_local(2, [sys.executable, "-c", sys.argv[1]], log_folder=sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("number", "times", "code"),
    [(signal.SIGTERM, 1, 0), (signal.SIGINT, 1, 0), (signal.SIGTERM, 2, 128 + 9)],
    ids=["sigterm", "sigint", "twice"],
)
def test_signals_reach_the_workers(tmp_path, number, times, code):
    body = f"""
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
open(os.path.join(r"{tmp_path}", f"ready{{index}}"), "w").close()
while len(got) < {times}:
    time.sleep(0.02)
    if got:
        open(os.path.join(r"{tmp_path}", f"told{{index}}"), "w").close()
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LAUNCHER, HEAD + body, str(tmp_path)]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        for sent in range(times):
            for index in (0, 1):
                name = "told" if sent else "ready"
                wait_for(lambda name=name, i=index: (tmp_path / f"{name}{i}").exists())
            process.send_signal(number)
        assert process.wait(timeout=20) == code


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert launch_local(1, ["true"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_other_threads_can_launch_too():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(launch_local(1, ["true"])))
    thread.start()
    thread.join(timeout=20)
    assert codes == [0]


def test_free_ports_are_free_and_different():
    ports = launch.free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        ([], 2, [None, None]),
        (["0", "1"], 2, ["0", "1"]),
        (["4", "5", "6", "7", "8"], 2, ["4,5", "6,7"]),
        (["GPU-ab"], 1, ["GPU-ab"]),
    ],
)
def test_gpus_are_dealt_out_evenly(gpus, workers, shares):
    got = launch.gpu_shares(gpus, workers)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in got] == shares


def test_visible_gpus_are_those_of_the_environment_or_of_the_driver(tmp_path):
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": "2,GPU-ab"}) == ["2", "GPU-ab"]
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert launch.visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert launch.visible_gpus({"PATH": str(tmp_path)}) == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: x)'\necho 'GPU 1: two (UUID: y)'\n")
    driver.chmod(0o755)
    assert launch.visible_gpus({"PATH": str(tmp_path)}) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"workers": 0}, "`workers` must be at least 1. Received: 0"),
        ({"workers": 2, "ports": [1]}, r"`ports` must be 2, one for each worker. Received: \[1\]"),
        (
            {"workers": 3, "environ": {"CUDA_VISIBLE_DEVICES": "0,1"}},
            "number of GPUs, 2, or set CUDA_VISIBLE_DEVICES= to train on CPUs. Received: 3",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        launch_local(command=["true"], **arguments)


def test_missing_program_is_named():
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        launch_local(2, ["no-such-program"])


def test_launching_needs_no_tensorflow():
    code = "import sys, grw_keras.training.launch; sys.exit('tensorflow' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environ, timeout=60).returncode == 0
