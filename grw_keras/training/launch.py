"""Starts several workers of one training on this machine and ends with them."""

import collections
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from grw_keras.training.cluster import Cluster

TAIL_LINES = 30
# Longer than the ten seconds after which TensorFlow tells the others that a worker has died.
GRACE_S = 20.0
_POLL_S = 0.05


def launch_local(
    workers: int,
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    ports: Sequence[int] | None = None,
    log_folder: str | os.PathLike | None = None,
    grace_s: float = GRACE_S,
) -> int:
    """Run `command` as `workers` processes that find each other by TF_CONFIG on loopback.

    GPUs are dealt out evenly by CUDA_VISIBLE_DEVICES. SIGTERM and SIGINT are passed on, so
    that the workers can save and end; a second one kills them. When one worker fails, the others
    get SIGTERM and, `grace_s` later, SIGKILL; the end of the failed one's output goes to stderr.

    Args:
        workers: number of processes, >= 1.
        command: the program and its arguments, the same for all.
        environ: environment of the processes but for TF_CONFIG; default this process's own.
        ports: a free port for each; default any.
        log_folder: where each worker's output goes, as `worker-0.log` and so on; default stdout,
            each line after the worker's number.
        grace_s: seconds between SIGTERM and SIGKILL.

    Returns:
        0 when all workers returned 0, else the code of the first that failed, 128 + number for
        one that a signal ended, as in a shell.

    Raises:
        ValueError: no workers, not one port for each, or fewer GPUs than workers.
        FileNotFoundError: `command` names no program.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1. Received: {workers}")
    chosen = free_ports(workers) if ports is None else list(ports)
    if len(chosen) != workers:
        raise ValueError(f"`ports` must be {workers}, one for each worker. Received: {chosen}")
    addresses = tuple(f"127.0.0.1:{port}" for port in chosen)
    base = dict(os.environ if environ is None else environ)
    shares = gpu_shares(visible_gpus(base), workers)
    team = _Team(None if log_folder is None else Path(log_folder))
    with _signals(team):
        try:
            for index in range(workers):
                own = {"PYTHONUNBUFFERED": "1", **base, **shares[index]}
                own["TF_CONFIG"] = Cluster(addresses, index).tf_config()
                team.start(command, own)
            failed = team.first_failure()
        finally:
            team.end(grace_s)
    if failed is None:
        return 0
    worker = team.workers[failed]
    code = worker.process.returncode
    sys.stderr.write(
        f"Worker {failed} of {workers} ended with {_describe(code)}. The end of its output:\n"
        + "".join(worker.tail)
    )
    return code if code > 0 else 128 - code


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that CUDA_VISIBLE_DEVICES leaves, or of all that the driver lists."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [
            name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name not in ("", "-1")
        ]
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return []
    listed = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def gpu_shares(gpus: Sequence[str], workers: int) -> list[dict[str, str]]:
    """For each worker the variables that leave it its GPUs; all have as many.

    Raises:
        ValueError: fewer GPUs than workers.
    """
    if not gpus:
        return [{}] * workers
    count = len(gpus) // workers
    if not count:
        raise ValueError(
            f"`workers` must be at most the number of GPUs, {len(gpus)}, or set "
            f"CUDA_VISIBLE_DEVICES= to train on CPUs. Received: {workers}"
        )
    parts = [gpus[index * count : (index + 1) * count] for index in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


class _Worker:
    """A running process, the thread that reads its output, and the last lines of that."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], prefix: str, out: IO):
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        # A session of its own: a terminal's Ctrl-C comes from the launcher alone, once.
        self.process = subprocess.Popen(
            list(command),
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(prefix, out), daemon=True)
        self._reader.start()

    def _read(self, prefix: str, out: IO) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                line = line if line.endswith("\n") else f"{line}\n"
                self.tail.append(line)
                out.write(prefix + line)
                out.flush()

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def close(self) -> None:
        """Kill what is left of the process and of those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # A descendant that left the session can hold the pipe open for as long as it lives.
        self._reader.join(timeout=5.0)


class _Team:
    """The workers of one launch."""

    def __init__(self, log_folder: Path | None):
        self.workers: list[_Worker] = []
        self._log_folder = log_folder
        self._logs = contextlib.ExitStack()
        self._told = False
        if log_folder is not None:
            log_folder.mkdir(parents=True, exist_ok=True)

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        index = len(self.workers)
        if self._log_folder is None:
            prefix, out = f"[{index}] ", sys.stdout
        else:
            path = self._log_folder / f"worker-{index}.log"
            prefix, out = "", self._logs.enter_context(path.open("w", encoding="utf-8"))
        self.workers.append(_Worker(command, environ, prefix, out))

    def first_failure(self) -> int | None:
        """Wait until one fails, and return its index, or None when all have ended well."""
        while True:
            codes = [worker.process.poll() for worker in self.workers]
            for index, code in enumerate(codes):
                if code:
                    return index
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_S)

    def pass_on(self, number: int, frame=None) -> None:
        del frame
        for worker in self.workers:
            worker.signal(signal.SIGKILL if self._told else number)
        self._told = True

    def end(self, grace_s: float) -> None:
        """End those that still run, at the latest after `grace_s` seconds."""
        deadline = time.monotonic() + grace_s
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        while time.monotonic() < deadline and any(w.process.poll() is None for w in self.workers):
            time.sleep(_POLL_S)
        for worker in self.workers:
            worker.close()
        self._logs.close()


@contextlib.contextmanager
def _signals(team: _Team) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on to the team; Python lets only the main thread do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, team.pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(code: int) -> str:
    return f"code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
