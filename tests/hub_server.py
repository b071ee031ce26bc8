"""A server on the loopback that speaks like the hub: redirects, ranges, validators, faults.

`HubServer` is two servers: the hub, which describes a file and redirects to the second, and that
second one, which has the bytes. A `File` may also lie on the hub itself.
"""

import dataclasses
import hashlib
import http.server
import threading
import time
from collections import Counter
from pathlib import Path

from grw_keras.zoo.download import fetch
from grw_keras.zoo.transfer import Policy


@dataclasses.dataclass
class Fault:
    """What goes wrong with one request for a file's bytes.

    Args:
        status: answer with this instead of the bytes.
        headers: to add to the answer.
        cut_after: send that many bytes of the body, then close the connection.
        stall_after: send that many bytes of the body, then nothing until the server stops.
        wait: hold the answer back until this event is set.
    """

    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    wait: threading.Event | None = None


@dataclasses.dataclass
class File:
    """A file of the server.

    Args:
        body: its bytes.
        etag: its validator; None sends none.
        linked: whether it is in LFS: described and redirected by the hub, sent by the other one.
        linked_sha256: what the hub says its hash is; default the truth.
        md5: send Google Cloud Storage's header with this md5 in base64.
        ranges: whether requests for a range are understood.
        if_range: whether a range is answered with the whole file once the validator has changed.
        framing: how the body's end is known: "length", "chunked", or "close" of the connection.
        faults: of the first requests, one each.
    """

    body: bytes
    etag: str | None = '"v1"'
    linked: bool = False
    linked_sha256: str | None = None
    md5: str | None = None
    ranges: bool = True
    if_range: bool = True
    framing: str = "length"
    faults: list[Fault] = dataclasses.field(default_factory=list)


class HubServer:
    """Both servers, running in threads between `with HubServer() as server:` and its end.

    Attributes:
        files: path to `File`, to change at will.
        requests: (server, path, headers) of each request so far; server is "hub" or "cdn".
        bodies: path to the number of answers that sent bytes of it.
    """

    def __init__(self):
        self.files: dict[str, File] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._servers = {role: self._listen(role) for role in ("hub", "cdn")}

    def _listen(self, role: str) -> http.server.ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "role": role})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def url(self, path: str = "", role: str = "hub") -> str:
        return f"http://127.0.0.1:{self._servers[role].server_port}{path}"

    def seen(self, role: str) -> list[dict[str, str]]:
        """Headers of the requests that one of the two got."""
        return [headers for server, _, headers in self.requests if server == role]

    def __enter__(self):
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    role: str

    def log_message(self, *_):
        """Say nothing on standard error."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.role, path, dict(self.headers)))
        file = self.hub.files.get(path)
        if file is None:
            self._answer(404)
        elif file.linked and self.role == "hub":
            self._redirect(file)
        else:
            self._send(path, file)

    def _answer(self, status: int, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _redirect(self, file: File):
        sha256 = file.linked_sha256 or hashlib.sha256(file.body).hexdigest()
        headers = {
            "Location": self.hub.url(f"{self.path}?signature=secret", "cdn"),
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(file.body)),
            "X-Repo-Commit": "0" * 40,
        }
        self._answer(302, headers)

    def _send(self, path: str, file: File):
        fault = file.faults.pop(0) if file.faults else Fault()
        if fault.wait is not None:
            fault.wait.wait(30)
        if fault.status is not None:
            self._answer(fault.status, fault.headers)
            return
        start = self._start(file)
        if start > 0 and start >= len(file.body):
            self._answer(416, {"Content-Range": f"bytes */{len(file.body)}"})
            return
        self.hub.bodies[path] += 1
        self._headers(file, start, fault)
        self._body(file.body[start:], file.framing, fault)

    def _start(self, file: File) -> int:
        """First byte to send: as the range says, if the validator still holds."""
        wanted = self.headers.get("Range")
        changed = self.headers.get("If-Range", file.etag) != file.etag
        if not (wanted and file.ranges) or (changed and file.if_range):
            return 0
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def _headers(self, file: File, start: int, fault: Fault):
        size = len(file.body)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if file.etag:
            self.send_header("ETag", file.etag)
        if file.md5:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={file.md5}")
        if file.framing == "length":
            self.send_header("Content-Length", str(size - start))
        elif file.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Connection", "close")
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, framing: str, fault: Fault):
        stop = fault.cut_after if fault.cut_after is not None else fault.stall_after
        self.wfile.write(_chunks(body, stop) if framing == "chunked" else body[:stop])
        self.wfile.flush()
        if fault.stall_after is not None:
            self.hub.stopped.wait(30)
        if stop is not None or framing == "close":
            time.sleep(0.005)  # let the bytes go out before the connection does
            self.close_connection = True


def _chunks(body: bytes, stop: int | None, size: int = 16) -> bytes:
    """`body` in chunks, as far as its first `stop` bytes: cut between two of them or inside one."""
    end = len(body) if stop is None else stop
    sent = b""
    for start in range(0, end, size):
        chunk = body[start : start + size]
        sent += b"%x\r\n" % len(chunk) + chunk[: end - start]
        sent += b"\r\n" if start + len(chunk) <= end else b""
    return sent + (b"0\r\n\r\n" if stop is None else b"")


BODY = bytes(range(256)) * 5
SHA256 = hashlib.sha256(BODY).hexdigest()
REPO_PATH = "/owner/repo/resolve/main/a.pt"
HUB_FILE = "hf://owner/repo/a.pt"
QUICK = Policy(connect_timeout_s=2, read_timeout_s=0.3, tries=3, backoff_s=0.01, max_wait_s=2)


def files(folder: Path) -> list[str]:
    """Names of all files in a folder, without the locks, which stay."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def quick(source, **options):
    return fetch(source, policy=QUICK, progress=False, **options)
