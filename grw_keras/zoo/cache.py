"""The cache of weight files: a file is under its own name only when it is whole and checked.

While it is being fetched a file `a.pt` is called `a.pt.part`, with `a.pt.part.json` saying what
the server called that version. `a.pt.json` records what was checked of a finished file,
`a.pt.lock` is held by the one process that may write, `a.pt.rejected-…` failed its check, and an
archive `b.tar.gz` is unpacked into a folder `b-…` named by the archive's hash.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from grw_keras import atomic

CACHE_VARIABLE = "GRW_KERAS_CACHE"
ARCHIVES = (".tar.gz", ".tgz")
_BLOCK_BYTES = 1 << 20

log = logging.getLogger("grw_keras")


class BadArchiveError(ValueError):
    """An archive that is damaged, or holds something other than files and folders inside it."""


@dataclasses.dataclass(frozen=True)
class Digests:
    """What can be compared of a file."""

    sha256: str
    md5: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Record:
    """What was checked when a file came into the cache, kept beside it.

    Args:
        url: the address or the mirror's file that it came from.
        sha256: of the file as it came.
        verified: what it was checked against.
    """

    url: str
    sha256: str
    verified: str


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one file in the cache."""

    path: Path

    @property
    def part(self) -> Path:
        return self._beside(".part")

    @property
    def validator(self) -> Path:
        return self._beside(".part.json")

    @property
    def record(self) -> Path:
        return self._beside(".json")

    @property
    def lock(self) -> Path:
        return self._beside(".lock")

    @property
    def is_archive(self) -> bool:
        return self.path.name.endswith(ARCHIVES)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def loadable(self, sha256: str) -> Path:
        """What a model loads: the file itself, or the folder that an archive is unpacked into."""
        if not self.is_archive:
            return self.path
        stem = next(self.path.name.removesuffix(e) for e in ARCHIVES if self.path.name.endswith(e))
        return self.path.with_name(f"{stem}-{sha256[:8]}")


def directory(cache_dir: str | os.PathLike | None = None) -> Path:
    """The cache's folder: `cache_dir`, else $GRW_KERAS_CACHE, else the platform's usual place."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("grw_keras", appauthor=False))


def digests(path: Path) -> Digests:
    """Hashes and size of a file, read once."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Digests(sha256.hexdigest(), md5.hexdigest(), size)


def explained(error: OSError, path: Path) -> OSError:
    """The same error of the disk, naming the file of the cache and what to do about it."""
    reason = error.strerror or str(error)
    message = (
        f"can't write to the cache: {reason}. Make room or give permission there, or choose "
        f"another folder with {CACHE_VARIABLE}. Received: {path}"
    )
    return OSError(error.errno, message) if error.errno else OSError(message)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into an error that names the cache."""
    try:
        yield
    except OSError as error:
        raise explained(error, path) from error


@contextlib.contextmanager
def locked(slot: Slot, timeout_s: float) -> Iterator[None]:
    """Hold the file's lock, which one process or thread can; says so when it has to wait.

    Raises:
        TimeoutError: another process held the lock for longer than `timeout_s`.
        OSError: the cache can't be written.
    """
    with writing(slot.path):
        slot.path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(slot.lock)
    try:
        _acquire(lock, slot, timeout_s)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, slot: Slot, timeout_s: float) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        log.warning("Waiting for another process that is fetching %s", slot.path)
    except OSError as error:
        raise explained(error, slot.lock) from error
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise TimeoutError(
            f"Another process has been fetching {slot.path} for more than {timeout_s:g} s. Wait "
            f"for it or end it, then try again. Received: the lock {slot.lock}"
        ) from error


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data so that a reader sees all of it or the file that was there before."""
    with writing(path):
        atomic.write_text(path, json.dumps(data, indent=1) + "\n")


def read_record(slot: Slot) -> Record | None:
    """The record beside a file; None where there is none, as when a person put the file there.

    Raises:
        ValueError: a record that nobody here wrote.
    """
    if not slot.record.is_file():
        return None
    try:
        return Record(**json.loads(slot.record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{slot.record} is not a record of this cache: {error}. Delete it and "
            f"{slot.path.name} to fetch the file anew."
        ) from error


def keep(slot: Slot, record: Record) -> None:
    """Give the finished part its name. The caller holds the lock and has checked the part."""
    # The record first: a crash in between leaves a record of no file, never a file of no record.
    write_json(slot.record, dataclasses.asdict(record))
    with writing(slot.path):
        os.replace(slot.part, slot.path)
        slot.validator.unlink(missing_ok=True)


def drop_part(slot: Slot) -> None:
    """Forget what has been fetched so far."""
    with writing(slot.part):
        slot.part.unlink(missing_ok=True)
        slot.validator.unlink(missing_ok=True)


def set_aside(slot: Slot, path: Path, sha256: str) -> Path:
    """Move a file that failed its check out of the way, for people to look at."""
    rejected = slot.path.with_name(f"{slot.path.name}.rejected-{sha256[:8]}")
    with writing(rejected):
        os.replace(path, rejected)
        slot.validator.unlink(missing_ok=True)
        if path == slot.path:
            slot.record.unlink(missing_ok=True)
    return rejected


def unpack(slot: Slot, sha256: str) -> Path:
    """Unpack an archive beside itself, all or nothing. The caller holds the lock.

    Raises:
        BadArchiveError: it is damaged, or a member is a link, a device, or outside the folder.
    """
    folder = slot.loadable(sha256)
    if folder.is_dir():
        return folder
    temporary = folder.with_name(folder.name + ".unpacking")
    try:
        with writing(temporary):
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            _extract(slot.path, temporary)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter=_plain_member)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadArchiveError(f"{archive.name} can't be unpacked: {error}") from error


def _plain_member(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's own filter, and no links or absolute names at all: weights need neither."""
    if not (member.isreg() or member.isdir()) or member.name.startswith(("/", "\\")):
        raise BadArchiveError(
            f"only files and folders inside the archive are unpacked. Received: {member.name!r}"
        )
    return tarfile.data_filter(member, folder)
