"""Checkpoints on full disks, under kills at any operation, and beside readers."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from grw_keras.training.checkpoint_files import DiskFullError, latest, write
from tests.checkpoint_helpers import is_of_step, names, save

OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


def intercept(put, before):
    """Calls `before(name, arguments)` ahead of each operation that changes the file system."""

    def wrap(name, original):
        def wrapped(*args, **kwargs):
            if name != "open" or args[1] & os.O_CREAT:
                before(name, args)
            return original(*args, **kwargs)

        return wrapped

    for name in OPERATIONS:
        put(os, name, wrap(name, getattr(os, name)))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_operation_harms_nothing(tmp_path, monkeypatch, caplog, code):
    """Each operation that a write does fails once, in turn, until none is left to fail."""
    failed = []
    for countdown in range(100):
        folder = tmp_path / str(countdown)
        for step in (1, 2):
            save(folder, step, keep=2)
        calls = []

        def fail(name, args, calls=calls, countdown=countdown):
            calls.append(name)
            if len(calls) == countdown + 1:
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            intercept(patch.setattr, fail)
            try:
                save(folder, 3, keep=2)
                error = None
            except DiskFullError as caught:
                error = caught
        if len(calls) <= countdown:
            break
        failed.append(calls[countdown])
        if error is None:  # it failed while it removed what had become old
            assert "Can't remove the old checkpoint" in caplog.text
            assert is_of_step(latest(folder), 3)
        else:
            assert (error.errno, error.needed_bytes > 100, error.free_bytes > 0) == (
                code,
                True,
                True,
            )
            assert f"{error.needed_bytes} bytes; {error.free_bytes} are free" in str(error)
            assert "keep_checkpoints" in str(error)
            assert str(folder) in str(error)
            assert set(names(folder)) - {"step-00000003"} == {"step-00000001", "step-00000002"}
            assert latest(folder).step in (2, 3)
        shutil.rmtree(folder / "step-00000003", ignore_errors=True)
        assert is_of_step(latest(folder), 2)
        save(folder, 4, keep=2)
        assert names(folder) == ["step-00000002", "step-00000004"]
    assert set(failed) == set(OPERATIONS)


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"It needs 400\d\d\d bytes"):
            write(tmp_path, 2, {"w": np.zeros(100_000, np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    assert is_of_step(latest(tmp_path), 1)


def test_a_small_disk_that_is_full(tmp_path):
    if not shutil.which("mount"):
        pytest.skip("no mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        save(disk, 1)
        with pytest.raises(DiskFullError, match="No space left on device") as caught:
            write(disk, 2, {"w": np.zeros(100_000, np.float32)}, {})
        assert caught.value.free_bytes < 256 * 1024 < 400_000 < caught.value.needed_bytes
        assert names(disk) == ["step-00000001"]
        save(disk, 2)
        assert is_of_step(latest(disk), 2)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_error_of_a_full_disk_travels_between_processes():
    error = DiskFullError(errno.ENOSPC, "full")
    error.needed_bytes, error.free_bytes = 3, 2
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.errno, copy.needed_bytes, copy.free_bytes) == (errno.ENOSPC, 3, 2)


def test_another_error_of_the_disk_stays_itself(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(name, args):
        if name == "fsync":
            raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        intercept(patch.setattr, fail)
        with pytest.raises(OSError, match="read-only") as caught:
            save(tmp_path, 2)
    assert not isinstance(caught.value, DiskFullError)
    assert names(tmp_path) == ["step-00000001"]


def test_writes_that_the_system_cuts_short_go_on(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:10]))
    save(tmp_path, 1)
    assert is_of_step(latest(tmp_path), 1)


def test_all_is_on_the_disk_before_its_name_and_the_name_before_anything_goes(
    tmp_path, monkeypatch
):
    """What a power cut must find: the order of writes, syncs and renames."""
    save(tmp_path, 1)
    done = []

    def note(name, args):
        if isinstance(args[0], int) and name in ("write", "fsync"):
            done.append((name, os.path.relpath(os.readlink(f"/proc/self/fd/{args[0]}"), tmp_path)))
        elif name == "rename":
            done.append((name, os.path.relpath(args[1], tmp_path)))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    with monkeypatch.context() as patch:
        intercept(patch.setattr, note)
        save(tmp_path, 2, keep=1)
    new = ".writing-step-00000002"
    assert done == [
        ("write", f"{new}/arrays.safetensors"),
        ("fsync", f"{new}/arrays.safetensors"),
        ("write", f"{new}/state.json"),
        ("fsync", f"{new}/state.json"),
        ("fsync", new),
        ("rename", "step-00000002"),
        ("fsync", "."),
        ("rename", ".removing-step-00000001"),
    ]


def _write_until(folder, countdown):
    """Writes step 3 and ends the process at an operation, half way through where it is a write;
    the exit code says at which, 0 that there are not so many."""
    calls, whole = [], os.write

    def end(name, args):
        calls.append(name)
        if len(calls) == countdown + 1:
            if name == "write":
                whole(args[0], args[1][: len(args[1]) // 2])
            os._exit(OPERATIONS.index(name) + 1)

    intercept(setattr, end)
    save(folder, 3, keep=2)
    os._exit(0)


def _killed_at_each_operation(folder):
    """For each operation of a write, a process that ends there; prints what is found then."""
    for countdown in range(100):
        place = folder / str(countdown)
        for step in (1, 2):
            save(place, step, keep=2)
        child = os.fork()
        if child == 0:
            _write_until(place, countdown)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = latest(place)
        assert is_of_step(found, found.step)
        save(place, 4, keep=2)
        assert names(place) == [f"step-0000000{found.step}", "step-00000004"]
        assert is_of_step(latest(place), 4)
        print(json.dumps([OPERATIONS[code - 1] if code else None, found.step]))
        if code == 0:
            return


def test_a_kill_at_any_operation_leaves_the_old_or_the_new(tmp_path):
    code = "import sys, pathlib; from tests import test_checkpoint_faults as t; "
    code += "t._killed_at_each_operation(pathlib.Path(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    killed, steps = zip(*map(json.loads, run.stdout.splitlines()), strict=True)
    assert set(killed) == {*OPERATIONS, None}
    assert list(steps) == sorted(steps)
    assert set(steps) == {2, 3}


def test_a_reader_beside_the_writer_sees_whole_checkpoints_only(tmp_path, caplog):
    save(tmp_path, 0, keep=1)
    done, seen = threading.Event(), []

    def look():
        while not done.is_set():
            checkpoint = latest(tmp_path)
            assert is_of_step(checkpoint, checkpoint.step)
            seen.append(checkpoint.step)

    def watch():
        try:
            look()
        except BaseException as error:
            seen.append(error)

    reader = threading.Thread(target=watch)
    reader.start()
    for step in range(1, 120):
        save(tmp_path, step, keep=1)
    done.set()
    reader.join()
    assert all(isinstance(step, int) for step in seen), seen[-1]
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert not caplog.records
