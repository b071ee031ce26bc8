"""One file over HTTP: redirects, resume, retries, timeouts; what the server says of the file.

A cut download goes on where it stopped only under the server's strong validator (`If-Range`), so
parts of two versions are never joined. Redirects are followed by hand, because the hub describes
a file in the redirect's own headers, and so that a token goes to the hub's host alone.
"""

import base64
import binascii
import contextlib
import dataclasses
import datetime
import email.utils
import json
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator

import requests
import rich.console
import rich.progress
import urllib3

from grw_keras.zoo import cache
from grw_keras.zoo.cache import Slot, log

# Names and answers of the hub: huggingface_hub, `constants.py` and `file_download.py`.
HUB = "https://huggingface.co"
HUB_VARIABLE = "HF_ENDPOINT"
HUB_TOKEN_VARIABLE = "HF_TOKEN"

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)


class Refused(Exception):
    """This place does not give the file; there is no use in asking it again."""


class _Retry(Exception):
    """A fault that may pass; `wait_s` where the server said how long to wait."""

    def __init__(self, message: str, wait_s: float | None = None):
        super().__init__(message)
        self.wait_s = wait_s


@dataclasses.dataclass(frozen=True)
class Policy:
    """How long to wait for a server.

    Args:
        connect_timeout_s: to make a connection, seconds.
        read_timeout_s: without a byte arriving, seconds.
        tries: in a row that bring no new byte, after which a place counts as failed; at least 1.
        backoff_s: wait after the first such try, seconds; doubles with each further one.
        max_wait_s: longest wait between tries, seconds; a server that asks for more has failed.
        lock_timeout_s: to wait for another process that fetches the same file, seconds.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    tries: int = 4
    backoff_s: float = 0.5
    max_wait_s: float = 120.0
    lock_timeout_s: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Published:
    """What a server says of a file.

    Args:
        url: the address that was asked, before redirects.
        etag: the body's validator, only where it is a strong one.
        sha256: the hub's `X-Linked-Etag` of files in Git LFS. (The `ETag` of the server that the
            hub redirects to looks alike and is something else.)
        md5: Google Cloud Storage's `x-goog-hash`, in hexadecimal digits.
        size_bytes: of the whole file.
    """

    url: str
    etag: str | None = None
    sha256: str | None = None
    md5: str | None = None
    size_bytes: int | None = None


def hub() -> str:
    """The hub's address: $HF_ENDPOINT or the public one."""
    return (os.environ.get(HUB_VARIABLE) or HUB).rstrip("/")


def transfer(url: str, slot: Slot, *, policy: Policy, progress: bool) -> Published:
    """Fetch `url` into the slot's part, resuming what is there. The caller holds the lock.

    Returns:
        What the server says of the file; all the bytes that it announced are in `slot.part`.

    Raises:
        Refused: a status that won't change, or too many tries without a new byte.
        OSError: the cache can't be written.
    """
    best, failures = 0, 0
    with requests.Session() as session, _reporter(url, slot, progress) as report:
        session.auth = _no_credentials
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "grw_keras"})
        while True:
            try:
                return _attempt(session, url, slot, policy, report)
            except _Retry as fault:
                size = _size(slot)
                failures = failures + 1 if size <= best else 1
                best = max(best, size)
                if failures >= policy.tries:
                    tries = f"{failures} tries in a row" if failures > 1 else "1 try"
                    raise Refused(f"{fault} ({tries} brought nothing new)") from fault
                wait_s = fault.wait_s
                if wait_s is None:
                    wait_s = min(policy.backoff_s * 2 ** (failures - 1), policy.max_wait_s)
                elif wait_s > policy.max_wait_s:
                    raise Refused(f"{fault}; it asks to wait for {wait_s:g} s") from fault
                log.info("%s: %s; trying again in %g s", url, fault, wait_s)
                time.sleep(wait_s)


def _no_credentials(request):
    """In the place of requests' own choice, which would look into ~/.netrc."""
    return request


def _attempt(session, url: str, slot: Slot, policy: Policy, report) -> Published:
    known = _read_validator(slot, url)
    response, published = _open(session, url, known, _size(slot), policy)
    with contextlib.closing(response):
        offset = _offset(response, slot, known)
        if offset is None:
            return known or published
        if offset == 0:
            cache.drop_part(slot)  # first, lest old bytes stand beside a new validator
            cache.write_json(slot.validator, dataclasses.asdict(published))
        _save(response, slot, offset, published.size_bytes, report)
    size = _size(slot)
    if published.size_bytes is not None and size < published.size_bytes:
        raise _Retry(f"cut after {size} of {published.size_bytes} bytes")
    return published


def _read_validator(slot: Slot, url: str) -> Published | None:
    """What the part's server said, if the part can be resumed from `url`."""
    if not (slot.part.is_file() and slot.validator.is_file()):
        return None
    known = Published(**json.loads(slot.validator.read_text(encoding="utf-8")))
    return known if known.url == url and known.etag else None


def _size(slot: Slot) -> int:
    return slot.part.stat().st_size if slot.part.is_file() else 0


def _open(session, url: str, known: Published | None, offset: int, policy: Policy):
    """The response with the body, and what its server and the hub on the way said."""
    headers = {}
    if known is not None and known.etag is not None and offset:
        headers = {"Range": f"bytes={offset}-", "If-Range": known.etag}
    here, sha256, linked_size = url, None, None
    for _ in range(_MAX_REDIRECTS + 1):
        response = _get(session, here, headers, policy)
        sha256 = sha256 or _lfs_sha256(response.headers.get("X-Linked-Etag"))
        linked_size = linked_size or _integer(response.headers.get("X-Linked-Size"))
        if response.status_code not in _REDIRECTS:
            break
        response.close()
        here = next_address(here, response.headers.get("Location"))
        if known is not None and sha256 not in (None, known.sha256):
            headers = {}  # the hub has another file now
    else:
        raise Refused(f"more than {_MAX_REDIRECTS} redirects")
    try:
        _check_status(response, here, url)
        size = _whole_size(response)
        size = linked_size if size is None else size
        etag = response.headers.get("ETag")
        published = Published(
            url=url,
            etag=etag if etag and etag.startswith('"') else None,
            sha256=sha256,
            md5=_goog_md5(response.headers.get("x-goog-hash")),
            size_bytes=size,
        )
        chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if size is None and not chunked and response.status_code != 416:
            raise Refused("the server does not say how long the file is, so a cut would not show")
    except BaseException:
        response.close()
        raise
    return response, published


def _get(session, url: str, headers: dict[str, str], policy: Policy) -> requests.Response:
    token = os.environ.get(HUB_TOKEN_VARIABLE)
    if token and _origin(url) == _origin(hub()):
        headers = {**headers, "Authorization": f"Bearer {token}"}
    timeout = (policy.connect_timeout_s, policy.read_timeout_s)
    try:
        return session.get(
            url, headers=headers, stream=True, allow_redirects=False, timeout=timeout
        )
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Retry(f"no answer: {_cause(error)}") from error
    except requests.RequestException as error:
        raise Refused(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """The innermost reason, without the layers of libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def next_address(here: str, location: str | None) -> str:
    """Where a redirect leads; refuses to leave HTTP, or to go from https to http.

    Example:
        >>> next_address("https://a.org/b/c", "/d")
        'https://a.org/d'
    """
    if not location:
        raise Refused("a redirect to nowhere")
    target = urllib.parse.urljoin(here, location)
    allowed = ("https",) if here.startswith("https:") else ("https", "http")
    if urllib.parse.urlsplit(target).scheme not in allowed:
        raise Refused(f"a redirect to an address that is not {' or '.join(allowed)}")
    return target


def _check_status(response: requests.Response, here: str, url: str) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    message = f"HTTP {status} {response.reason}"
    if _origin(here) != _origin(url):  # the rest of a redirect's address may hold a signature
        message += f" from {urllib.parse.urlsplit(here).netloc}"
    if status in _TRANSIENT:
        raise _Retry(message, _retry_after(response.headers.get("Retry-After")))
    raise Refused(message)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait; the header holds seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.datetime.now(date.tzinfo)
    return max(0.0, (date - now).total_seconds())


def _lfs_sha256(etag: str | None) -> str | None:
    found = re.fullmatch(r'"?([0-9a-f]{64})"?', etag or "")
    return found[1] if found else None


def _goog_md5(header: str | None) -> str | None:
    """`crc32c=…,md5=…` in base64, https://cloud.google.com/storage/docs/xml-api/reference-headers"""
    found = re.search(r"(?:^|,)\s*md5=([\w+/]+=*)", header or "")
    try:
        return base64.b64decode(found[1], validate=True).hex() if found else None
    except binascii.Error:
        return None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _range(response: requests.Response) -> tuple[int | None, int | None]:
    """(first byte, size of the whole) of a Content-Range."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header)
    return (_integer(found[1]), _integer(found[2])) if found else (None, None)


def _whole_size(response: requests.Response) -> int | None:
    if response.status_code == 200:
        return _integer(response.headers.get("Content-Length"))
    return _range(response)[1]


def _offset(response: requests.Response, slot: Slot, known: Published | None) -> int | None:
    """Where in the part the body goes; None where the part is complete already."""
    if response.status_code == 200:
        return 0
    size = _size(slot)
    first, whole = _range(response)
    same = known is not None and response.headers.get("ETag") in (None, known.etag)
    if same and size:
        if response.status_code == 206 and first == size:
            return size
        if response.status_code == 416 and whole == size:
            return None
    cache.drop_part(slot)
    raise _Retry(f"HTTP {response.status_code} with the wrong range, {first} of {whole}", wait_s=0)


def _save(response, slot: Slot, offset: int, size: int | None, report) -> None:
    with cache.writing(slot.part):
        # Unbuffered, so that no byte of a failed write is left for `close` to fail on again.
        file = slot.part.open("r+b" if offset else "wb", buffering=0)
    with contextlib.closing(file):
        file.seek(offset)
        while chunk := _read(response, offset):
            with cache.writing(slot.part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            offset += len(chunk)
            report(offset, size)
        with cache.writing(slot.part):
            os.fsync(file.fileno())


def _read(response, offset: int) -> bytes:
    """The bytes that have arrived, as stored; empty at the end."""
    try:
        return response.raw.read1(_CHUNK_BYTES, decode_content=False)
    except _NETWORK_ERRORS as error:
        raise _Retry(f"cut after {offset} bytes: {_cause(error)}") from error


@contextlib.contextmanager
def _reporter(url: str, slot: Slot, progress: bool) -> Iterator[Callable]:
    """A function of (bytes so far, bytes in all or None): a bar on a terminal, else nothing."""
    log.info("Fetching %s into %s", url, slot.path)
    if not (progress and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(slot.path.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
