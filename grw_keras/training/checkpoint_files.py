"""Checkpoints on disk: a folder per step that is there whole or not at all.

`folder/step-00001234/` holds `arrays.safetensors` and `state.json`, which has the checksums of
both. It is written as `.writing-…` beside its final name, brought to the disk, and renamed; one
that goes is renamed to `.removing-…` first. So whoever looks, at any moment and after a kill or a
power cut at any moment, finds only whole ones under the names `step-…`. The same step written
again, as after a resume, is `step-00001234.2` until the first goes. One process writes at a time;
any number may read.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

FORMAT_VERSION = 1
ARRAYS, STATE = "arrays.safetensors", "state.json"
_WRITING, _REMOVING = ".writing-", ".removing-"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
# EFBIG: a limit on the size of files, as batch systems set it.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # folders of some network file systems
# safetensors.numpy writes bfloat16 but does not read it, hence this table.
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "C64": np.dtype("complex64"),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}

log = logging.getLogger("grw_keras")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was written: arrays by name (read-only), and plain data."""

    path: Path
    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


class CorruptCheckpointError(ValueError):
    """Files of a checkpoint that are cut, missing or changed."""


class DiskFullError(OSError):
    """No room for a checkpoint: `needed_bytes` of it, `free_bytes` on the disk."""

    needed_bytes: int
    free_bytes: int


def write(
    folder: str | os.PathLike,
    step: int,
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Writes a checkpoint, then removes the oldest ones beyond `keep`.

    The arrays are copied once in memory. When it returns the checkpoint is on the disk.

    Args:
        folder: of the checkpoints of one run; made if missing.
        step: optimiser steps done, >= 0 and not below that of a good checkpoint there.
        arrays: by name; numbers or booleans of any shape, bfloat16 too.
        state: plain JSON data: tuples come back as lists.
        keep: how many stay, the new one among them, >= 1.

    Returns:
        The new checkpoint's folder.

    Raises:
        ValueError: a number out of range, or a later good checkpoint is there.
        TypeError: an array or a value of another type.
        DiskFullError: no room; the checkpoints before are as they were.
        OSError: the folder can't be written; the same.
    """
    for name, value, low in (("step", step, 0), ("keep", keep, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"`{name}` must be an integer >= {low}. Received: {value!r}")
    folder = Path(folder)
    _check_order(folder, step)
    files = _files(step, arrays, state)
    name = _free_name(folder, step)
    temporary = folder / f"{_WRITING}{name}"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _sync_folder(folder.parent)
        _sweep(folder)
        _write_files(temporary, files)
        os.rename(temporary, folder / name)
        _sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise _disk_full(error, folder, step, files) from error
        raise
    _remove_old(folder, keep, folder / name)
    return folder / name


def latest(folder: str | os.PathLike) -> Checkpoint | None:
    """The last whole checkpoint of a folder; None if there is none, or no folder.

    A corrupt one is passed over with a warning that says what is wrong with it.

    Raises:
        CorruptCheckpointError: there are checkpoints, and all are corrupt.
    """
    folder = Path(folder)
    while True:
        problems: list[str] = []
        for _, _, path in _newest_first(folder):
            try:
                checkpoint = read(path)
            except CorruptCheckpointError as error:
                if not os.path.lexists(path):
                    break  # removed meanwhile by who wrote newer ones: look again
                problems.append(str(error))
                continue
            for problem in problems:
                log.warning("%s; taking the one before, %s", problem, path.name)
            return checkpoint
        else:
            if problems:
                raise CorruptCheckpointError(
                    f"No checkpoint in {folder} is whole: {'; '.join(problems)}. Start anew in "
                    "another folder, or move these away."
                )
            return None


def read(path: str | os.PathLike) -> Checkpoint:
    """One checkpoint, checked against its checksums.

    Raises:
        CorruptCheckpointError: a file is missing, cut or changed, or is of a newer format.
    """
    path = Path(path)
    content = _read_state(path)
    data = _read_bytes(path / ARRAYS)
    written = content["arrays"]
    if len(data) != written["size_bytes"]:
        raise CorruptCheckpointError(
            f"{path / ARRAYS} has {len(data)} bytes instead of {written['size_bytes']}"
        )
    if hashlib.sha256(data).hexdigest() != written["sha256"]:
        raise CorruptCheckpointError(f"{path / ARRAYS} does not have the checksum it was given")
    arrays = {
        name: np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in safetensors.deserialize(data)
    }
    for array in arrays.values():
        array.setflags(write=False)
    return Checkpoint(path, content["step"], arrays, content["state"])


def _read_state(path: Path) -> dict[str, Any]:
    try:
        file = json.loads(_read_bytes(path / STATE))
        content, digest = file["content"], file["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise CorruptCheckpointError(f"{path / STATE} is cut or no JSON: {error!r}") from error
    if hashlib.sha256(_json(content)).hexdigest() != digest:
        raise CorruptCheckpointError(f"{path / STATE} does not have the checksum it was given")
    if content["format_version"] != FORMAT_VERSION:
        raise CorruptCheckpointError(
            f"{path / STATE} is of the format {content['format_version']}, and this grw_keras "
            f"reads {FORMAT_VERSION}: upgrade it"
        )
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptCheckpointError(f"{path} is missing") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptCheckpointError(f"{path} can't be read: {error.strerror}") from error


def _json(content: Any) -> bytes:
    """The one text of plain data that its checksum is of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _files(step: int, arrays: Mapping[str, np.ndarray], state: Mapping) -> dict[str, bytes]:
    """The files of a checkpoint, name to bytes."""
    plain = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.newbyteorder("=") not in _DTYPES.values():
            raise TypeError(
                f"`arrays` must hold numbers or booleans. Received: {name!r} of {array.dtype}"
            )
        # In C order: safetensors takes the memory as it lies.
        plain[name] = np.array(array, array.dtype.newbyteorder("="), order="C", copy=None)
    data = safetensors.numpy.save(plain)
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "arrays": {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)},
        "state": json.loads(json.dumps(dict(state))),  # as it will be read: all keys are text
    }
    digest = hashlib.sha256(_json(content)).hexdigest()
    text = json.dumps({"sha256": digest, "content": content}, indent=1) + "\n"
    return {ARRAYS: data, STATE: text.encode()}


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """A new folder of files, all of it on the disk."""
    os.mkdir(folder)
    for name, data in files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _newest_first(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, how often it has been written, folder) of all checkpoints."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if name := _NAME.fullmatch(path.name):
            found.append((int(name[1]), int(name[2] or 1), path))
    return sorted(found, reverse=True)


def _free_name(folder: Path, step: int) -> str:
    times = [times for other, times, _ in _newest_first(folder) if other == step]
    return f"step-{step:08d}.{max(times) + 1}" if times else f"step-{step:08d}"


def _check_order(folder: Path, step: int) -> None:
    """A later checkpoint is corrupt, the reason why the run began before it, or another run's."""
    for later, _, path in _newest_first(folder):
        if later <= step:
            return
        try:
            read(path)
        except CorruptCheckpointError:
            continue
        raise ValueError(
            f"`step` must not be below that of a good checkpoint there, {path}: resume from it, "
            f"or write to another folder. Received: step={step}"
        )


def _sweep(folder: Path) -> None:
    """Removes what killed writes and removals left."""
    for path in folder.iterdir():
        if path.name.startswith((_WRITING, _REMOVING)):
            shutil.rmtree(path)


def _remove_old(folder: Path, keep: int, new: Path) -> None:
    """Removes all but the new checkpoint and the `keep` - 1 steps before it.

    Later ones are corrupt, as `_check_order` saw; the same step's earlier form is superseded.
    """
    found = _newest_first(folder)
    current = next(step for step, _, path in found if path == new)
    kept = {current}
    for step, _, path in found:
        if path == new:
            continue
        if step < current and step not in kept and len(kept) < keep:
            kept.add(step)
            continue
        leaving = folder / f"{_REMOVING}{path.name}"
        try:
            os.rename(path, leaving)
            shutil.rmtree(leaving)
        except OSError as error:  # the new one is safe: no reason to stop a training
            log.warning("Can't remove the old checkpoint %s: %s", path, error)


def _disk_full(error: OSError, folder: Path, step: int, files: Mapping[str, bytes]) -> OSError:
    needed = sum(len(data) for data in files.values())
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    full = DiskFullError(
        error.errno,
        f"can't write the checkpoint of step {step}: {error.strerror}. It needs {needed} bytes; "
        f"{free} are free. The checkpoints before it are untouched. Make room there or lower "
        f"training.keep_checkpoints, then resume. Received: {folder}",
    )
    full.needed_bytes, full.free_bytes = needed, free
    return full
