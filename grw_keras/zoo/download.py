"""Files from their sources into the cache: mirrors, resume, retries, checks. Knows no models.

`fetch` asks the cache, then the mirrors, then the sources in order, and collects every failure.
One address is fetched by `transfer.transfer`, which resumes what was cut as long as the server's
validator says that the file is still the same.
"""

import dataclasses
import hashlib
import logging
import os
import re
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

from grw_keras.zoo import cache
from grw_keras.zoo.cache import Digests, Record, Slot, log
from grw_keras.zoo.transfer import HUB, Policy, Published, Refused, hub, transfer

OFFLINE_VARIABLE = "GRW_KERAS_OFFLINE"
MIRROR_VARIABLE = "GRW_KERAS_MIRROR"
UNVERIFIED = "no hash is published"
_SWITCH = dict.fromkeys(("", "0", "false", "no", "off"), False)
_SWITCH |= dict.fromkeys(("1", "true", "yes", "on"), True)


class DownloadError(ConnectionError):
    """No source and no mirror gave a file that could be verified."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One address of a file.

    Args:
        url: https, http, or `hf://owner/repo/file[@revision]` on the Hugging Face hub.
        format: what the file is, for whoever reads it.
        sha256: of the file, 64 lower-case hexadecimal digits, where it is known.
        size_bytes: of the file, where it is known.
        file: name to keep it under; default the address's last part. One that ends in `.tar.gz`
            or `.tgz` is unpacked.

    Raises:
        ValueError: an address, hash or size that can't be one.
    """

    url: str
    format: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    file: str | None = None

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        hub_parts = len((parts.netloc + parts.path).split("/")) >= 3
        if parts.scheme not in ("http", "https", "hf") or not parts.netloc or "@" in parts.netloc:
            raise ValueError(
                "`url` must be an address https://…, http://… or hf://owner/repo/file, without a "
                f"user name or password. Received: {parts._replace(netloc='…').geturl()!r}"
            )
        if parts.scheme == "hf" and not hub_parts:
            raise ValueError(f"`url` must be hf://owner/repo/file. Received: {self.url!r}")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"`sha256` must be 64 hexadecimal digits. Received: {self.sha256!r}")
        if self.size_bytes is not None and not (
            type(self.size_bytes) is int and self.size_bytes > 0
        ):
            raise ValueError(f"`size_bytes` must be positive. Received: {self.size_bytes!r}")
        if ".." in self.relative.parts or self.relative.name != self.name or not self.name:
            raise ValueError(f"`url` and `file` must name one file. Received: {self}")

    @property
    def name(self) -> str:
        """The file's name in the cache and in mirrors."""
        return self.file or urllib.parse.urlsplit(self._address(HUB)).path.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Where to fetch it, with $HF_ENDPOINT for files of the hub."""
        return self._address(hub())

    @property
    def relative(self) -> PurePosixPath:
        """Its place in a cache or mirror: host, folders of the address, name.

        Example:
            >>> str(Source("hf://owner/repo/weights.pt").relative)
            'huggingface.co/owner/repo/resolve/main/weights.pt'
        """
        parts = urllib.parse.urlsplit(self._address(HUB))
        folder = PurePosixPath(parts.path.lstrip("/")).parent
        if parts.query:
            folder /= "query-" + hashlib.sha256(parts.query.encode()).hexdigest()[:8]
        return PurePosixPath(parts.netloc.replace(":", "_")) / folder / self.name

    def _address(self, endpoint: str) -> str:
        if not self.url.startswith("hf://"):
            return self.url
        path, _, revision = self.url.removeprefix("hf://").partition("@")
        owner, repo, file = path.split("/", 2)
        return f"{endpoint}/{owner}/{repo}/resolve/{revision or 'main'}/{file}"


class Sourced(Protocol):
    """Anything with sources, in the order to try them; a `WeightEntry` is one."""

    @property
    def sources(self) -> Sequence[Source]: ...


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file that is in the cache.

    Args:
        path: the file; the unpacked folder of an archive.
        source: which of the sources it is.
        verified: what it was checked against, in words.
    """

    path: Path
    source: Source
    verified: str


def fetch(
    source_or_entry: Source | Sourced,
    *,
    cache_dir: str | os.PathLike | None = None,
    offline: bool | None = None,
    mirrors: Sequence[str | os.PathLike] | None = None,
    progress: bool = True,
    policy: Policy | None = None,
) -> Fetched:
    """A verified local copy of a file: from the cache, else a mirror, else a source.

    Args:
        source_or_entry: a source, or a thing with `sources`.
        cache_dir: the cache's folder; default $GRW_KERAS_CACHE, else the platform's usual place.
        offline: use no network; default whether $GRW_KERAS_OFFLINE is 1, true, yes or on.
        mirrors: folders and http(s) addresses to look at before the sources, for
            `<mirror>/<host>/<path>` (so a copy of another cache is one) and `<mirror>/<name>`;
            default $GRW_KERAS_MIRROR, separated by commas or as in $PATH.
        progress: draw a progress bar where standard error is a terminal.
        policy: timeouts and tries.

    Raises:
        DownloadError: every place failed; a ConnectionError. Lists each with its reason.
        FileNotFoundError: the same when offline.
        OSError: the cache can't be written.
        TimeoutError: another process does not finish fetching it.
        ValueError: a bad mirror, or a bad value of a variable.
    """
    sources = [source_or_entry] if isinstance(source_or_entry, Source) else source_or_entry.sources
    root = cache.directory(cache_dir)
    policy = policy or Policy()
    offline = _switch(OFFLINE_VARIABLE) if offline is None else offline
    slots = [(source, Slot(root / source.relative)) for source in sources]
    for source, slot in slots:
        if found := _ready(source, slot):
            return found

    failures: list[str] = []
    places: list[tuple[Source, Slot, str | Path | None]] = []
    places += [(source, slot, None) for source, slot in slots if slot.path.is_file()]
    places += _places(slots, mirrors)
    for source, slot, place in places:
        if offline and isinstance(place, str):
            failures.append(f"{place}: not tried, offline")
            continue
        with cache.locked(slot, policy.lock_timeout_s):
            try:
                if found := _settle(source, slot):  # another process may have fetched it
                    return found
                if place is not None:
                    return _obtain(source, slot, place, policy, progress)
            except Refused as error:
                failures.append(f"{place or slot.path}: {error}")
    raise _nothing_found(slots, failures, offline, mirrors)


def _nothing_found(
    slots: list[tuple[Source, Slot]],
    failures: list[str],
    offline: bool,
    mirrors: Sequence[str | os.PathLike] | None,
) -> OSError:
    names = " or ".join(dict.fromkeys(source.name for source, _ in slots))
    lines = [f"{names} is not in the cache, and no place gave it:", *failures]
    for mirror in _mirrors(mirrors):
        if isinstance(mirror, Path):
            reason = f"holds no {names}" if mirror.is_dir() else "no such folder"
            lines.append(f"{mirror}: {reason}")
    lines += ["To go on, put it there by hand:", *(str(slot.path) for _, slot in slots)]
    tail = (
        f"or name a folder or server that holds it (by this name, or by host and path) in "
        f"{MIRROR_VARIABLE}"
    )
    if offline:
        tail += f", or go online: {OFFLINE_VARIABLE}=0"
    message = "\n  ".join(lines) + f"\n{tail}."
    return FileNotFoundError(message) if offline else DownloadError(message)


def _places(slots, mirrors) -> list[tuple[Source, Slot, str | Path]]:
    """(source, slot, address or file) in the order to try; folders only where they hold it."""
    found: list[tuple[Source, Slot, str | Path]] = []
    for mirror in _mirrors(mirrors):
        for source, slot in slots:
            for relative in (source.relative, PurePosixPath(source.name)):
                if isinstance(mirror, str):
                    found.append((source, slot, f"{mirror.rstrip('/')}/{relative}"))
                elif (mirror / relative).is_file():
                    found.append((source, slot, mirror / relative))
    return found + [(source, slot, source.address) for source, slot in slots]


def _mirrors(mirrors: Sequence[str | os.PathLike] | None) -> list[str | Path]:
    if mirrors is None:
        # A colon also stands in http:// and before a port, where it separates nothing.
        separator = rf",|{re.escape(os.pathsep)}(?!//|\d)"
        mirrors = [m for m in re.split(separator, os.environ.get(MIRROR_VARIABLE, "")) if m.strip()]
    if isinstance(mirrors, str):
        raise TypeError(f"`mirrors` must be a list of places. Received: {mirrors!r}")
    found: list[str | Path] = []
    for mirror in (str(m).strip() for m in mirrors):
        if not mirror.startswith(("http://", "https://")):
            found.append(Path(mirror).expanduser())
        elif "@" in urllib.parse.urlsplit(mirror).netloc:
            raise ValueError("A mirror's address must hold no user name or password.")
        else:
            found.append(mirror)
    return found


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "")
    if value.lower() not in _SWITCH:
        raise ValueError(f"{variable} must be 1 or 0. Received: {value!r}")
    return _SWITCH[value.lower()]


# What is in the cache already


def _ready(source: Source, slot: Slot) -> Fetched | None:
    """A good file that needs no work; takes no lock, so that a read-only cache can be used."""
    if not slot.path.is_file():
        return None
    try:
        found = _check(source, slot, cache.digests(slot.path))
    except Refused:
        return None
    return found if found.path.exists() else None


def _settle(source: Source, slot: Slot) -> Fetched | None:
    """Check and unpack the file in the cache, if any; set it aside if it is bad."""
    if not slot.path.is_file():
        return None
    digests = cache.digests(slot.path)
    try:
        found = _check(source, slot, digests)
    except Refused as error:
        _reject(slot, slot.path, digests, str(error))
    return _unpacked(found, slot, digests)


def _check(source: Source, slot: Slot, digests: Digests) -> Fetched:
    record = cache.read_record(slot)
    verified = _verify_pinned(source, digests)
    if verified is None and record is None:
        verified = f"nothing: put there by hand, and {UNVERIFIED}"
    elif verified is None and record is not None:
        _agree("the cache's record", record.sha256, digests.sha256)
        verified = record.verified
    return Fetched(slot.loadable(digests.sha256), source, str(verified))


def _unpacked(found: Fetched, slot: Slot, digests: Digests) -> Fetched:
    if slot.is_archive:
        try:
            cache.unpack(slot, digests.sha256)
        except cache.BadArchiveError as error:
            _reject(slot, slot.path, digests, str(error))
    return found


def _reject(slot: Slot, path: Path, digests: Digests, reason: str) -> NoReturn:
    rejected = cache.set_aside(slot, path, digests.sha256)
    raise Refused(f"{reason}; set aside as {rejected}")


def _agree(words: str, expected: str, actual: str) -> None:
    if expected != actual:
        raise Refused(f"wrong hash: {words} is {expected}, the file's is {actual}")


def _verify_pinned(source: Source, digests: Digests) -> str | None:
    """Compare with what the source itself says; None where it says no hash."""
    if digests.size_bytes == 0:
        raise Refused("the file is empty")
    if source.size_bytes not in (None, digests.size_bytes):
        raise Refused(f"wrong size: {source.size_bytes} bytes expected, {digests.size_bytes} found")
    if source.sha256 is None:
        return None
    _agree("sha256 of the manifest", source.sha256, digests.sha256)
    return "sha256 of the manifest"


def _verify(source: Source, published: Published, digests: Digests) -> str:
    """What a fetched file agrees with, in words; Refused if it does not."""
    if published.size_bytes not in (None, digests.size_bytes):
        raise Refused(
            f"wrong size: the server announced {published.size_bytes} bytes, "
            f"{digests.size_bytes} came"
        )
    if pinned := _verify_pinned(source, digests):
        return pinned
    if published.sha256 is not None:
        words = "the hub's LFS sha256"
        _agree(words, published.sha256, digests.sha256)
        return words
    if published.md5 is not None:
        words = "the server's md5 (x-goog-hash)"
        _agree(words, published.md5, digests.md5)
        return words
    sized = source.size_bytes is not None or published.size_bytes is not None
    return f"{'size only' if sized else 'nothing'}: {UNVERIFIED}"


# One place


def _obtain(
    source: Source, slot: Slot, place: str | Path, policy: Policy, progress: bool
) -> Fetched:
    """Fetch from one place, check, keep. The caller holds the lock."""
    if isinstance(place, str):
        published = transfer(place, slot, policy=policy, progress=progress)
    else:
        published = _copy(place, slot)
    digests = cache.digests(slot.part)
    try:
        verified = _verify(source, published, digests)
    except Refused as error:
        _reject(slot, slot.part, digests, str(error))
    cache.keep(slot, Record(str(place), digests.sha256, verified))
    level = logging.WARNING if UNVERIFIED in verified else logging.INFO
    log.log(level, "Fetched %s from %s; verified: %s", slot.path, place, verified)
    return _unpacked(Fetched(slot.loadable(digests.sha256), source, verified), slot, digests)


def _copy(place: Path, slot: Slot) -> Published:
    cache.drop_part(slot)
    try:
        original = place.open("rb")
    except OSError as error:
        raise Refused(f"can't be read: {error.strerror}") from error
    with original, cache.writing(slot.part), slot.part.open("wb") as part:
        shutil.copyfileobj(original, part)
    return Published(str(place))
