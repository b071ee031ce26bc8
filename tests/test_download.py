import base64
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from grw_keras.zoo import cache, download, transfer
from grw_keras.zoo.download import DownloadError, Source, fetch
from grw_keras.zoo.transfer import Policy
from tests.hub_server import Fault, File, HubServer

BODY = bytes(range(256)) * 5
SHA256 = hashlib.sha256(BODY).hexdigest()
REPO_PATH = "/owner/repo/resolve/main/a.pt"
HUB_FILE = "hf://owner/repo/a.pt"
QUICK = Policy(connect_timeout_s=2, read_timeout_s=0.3, tries=3, backoff_s=0.01, max_wait_s=2)


@pytest.fixture
def server():
    with HubServer() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No variable of whoever runs the tests has a say, and nothing lands in a home folder."""
    for name in ("GRW_KERAS_OFFLINE", "GRW_KERAS_MIRROR", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GRW_KERAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(server, monkeypatch):
    """The server as the hub, with one file in LFS."""
    monkeypatch.setenv("HF_ENDPOINT", server.url())
    server.files[REPO_PATH] = File(BODY, linked=True)
    return server


def files(folder: Path) -> list[str]:
    """Names of all files in a folder, without the locks, which stay."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def quick(source, **options):
    return fetch(source, policy=QUICK, progress=False, **options)


# What is checked


def test_file_of_the_hub_is_checked_against_its_lfs_hash(hub, tmp_path):
    fetched = quick(Source(HUB_FILE))
    place = tmp_path / "cache" / "huggingface.co" / "owner" / "repo" / "resolve" / "main" / "a.pt"
    assert fetched.path == place
    assert fetched.path.read_bytes() == BODY
    assert fetched.verified == "the hub's LFS sha256"
    assert files(tmp_path / "cache") == ["a.pt", "a.pt.json"]
    assert quick(Source(HUB_FILE)) == fetched
    assert hub.bodies[REPO_PATH] == 1


@pytest.mark.parametrize(
    ("file", "source", "verified"),
    [
        ({}, {}, "size only: no hash is published"),
        ({"framing": "chunked"}, {}, "nothing: no hash is published"),
        ({"framing": "chunked"}, {"size_bytes": len(BODY)}, "size only: no hash is published"),
        ({"md5": base64.b64encode(hashlib.md5(BODY).digest()).decode()}, {}, "the server's md5"),
        ({}, {"sha256": SHA256, "size_bytes": len(BODY)}, "sha256 of the manifest"),
        # The validator looks like a hash, and isn't one.
        ({"etag": f'"{"0" * 64}"'}, {}, "size only: no hash is published"),
    ],
)
def test_what_could_be_verified_is_told(server, caplog, file, source, verified):
    server.files["/a.pt"] = File(BODY, **file)
    fetched = quick(Source(server.url("/a.pt"), **source))
    assert fetched.verified.startswith(verified)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("no hash is published" in text for text in warnings) == ("hash" in verified)
    assert quick(Source(server.url("/a.pt"), **source)).verified == fetched.verified


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ({}, {"sha256": "0" * 64}, "wrong hash: sha256 of the manifest is 0000"),
        ({}, {"size_bytes": 7}, "wrong size: 7 bytes expected, 1280 found"),
        ({"md5": base64.b64encode(b"0" * 16).decode()}, {}, "wrong hash: the server's md5"),
        ({"linked": True, "linked_sha256": "0" * 64}, {}, "wrong hash: the hub's LFS sha256"),
    ],
)
def test_wrong_file_is_refused_and_set_aside(server, tmp_path, file, source, reason):
    server.files["/a.pt"] = File(BODY, **file)
    rejected = f"a.pt.rejected-{SHA256[:8]}"
    with pytest.raises(DownloadError, match=rf"{reason}.*set aside as .*{rejected}"):
        quick(Source(server.url("/a.pt"), **source))
    assert files(tmp_path) == [rejected]


def test_damaged_file_in_the_cache_is_set_aside_and_fetched_anew(hub, tmp_path):
    path = quick(Source(HUB_FILE)).path
    path.write_bytes(BODY[:-1] + b"x")
    assert quick(Source(HUB_FILE)).path.read_bytes() == BODY
    assert len(list(path.parent.glob("a.pt.rejected-*"))) == 1
    path.write_bytes(BODY[:100])
    with pytest.raises(FileNotFoundError, match=r"the cache's record is .* set aside"):
        quick(Source(HUB_FILE), offline=True)
    assert not path.exists()


# Cuts, stalls, changes


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_cut_at_any_byte_leaves_nothing_loadable_and_resumes(server, tmp_path, framing):
    body = bytes(range(40))
    once = Policy(read_timeout_s=2, tries=1)
    for cut in range(len(body)):
        path = f"/{cut}.pt"
        server.files[path] = File(body, framing=framing, faults=[Fault(cut_after=cut)])
        source = Source(server.url(path))
        with pytest.raises(DownloadError, match=f"cut after {cut}"):
            fetch(source, policy=once)
        assert f"{cut}.pt" not in files(tmp_path)
        part = next(tmp_path.rglob(f"{cut}.pt.part"))
        assert part.read_bytes() == body[:cut]
        assert fetch(source, policy=once).path.read_bytes() == body
        last = server.seen("hub")[-1]
        assert last.get("Range") == (f"bytes={cut}-" if cut else None)
        assert last.get("If-Range") == ('"v1"' if cut else None)
        assert server.bodies[path] == 2


def test_cut_that_a_hash_could_not_show_is_refused_before_it_happens(server):
    server.files["/a.pt"] = File(BODY, framing="close")
    with pytest.raises(DownloadError, match="does not say how long the file is"):
        quick(Source(server.url("/a.pt")))


def test_mirror_that_has_nothing_leaves_the_sources_part_alone(server):
    server.files["/a.pt"] = File(BODY, faults=[Fault(cut_after=500)])
    source = Source(server.url("/a.pt"))
    with pytest.raises(DownloadError):
        fetch(source, policy=Policy(tries=1))
    assert quick(source, mirrors=[server.url("/none")]).path.read_bytes() == BODY
    assert server.seen("hub")[-1]["Range"] == "bytes=500-"


def test_part_of_one_address_is_not_joined_with_another(server, tmp_path):
    """Both call their version the same, and there is no hash to show it."""
    server.files["/a.pt"] = File(BODY, faults=[Fault(cut_after=500)])
    server.files["/mirror/a.pt"] = File(BODY[::-1])
    source = Source(server.url("/a.pt"))
    with pytest.raises(DownloadError):
        fetch(source, policy=Policy(tries=1))
    assert quick(source, mirrors=[server.url("/mirror")]).path.read_bytes() == BODY[::-1]


def test_process_killed_while_fetching_leaves_nothing_loadable(server, tmp_path):
    server.files["/a.pt"] = File(BODY, faults=[Fault(stall_after=700)])
    with start(server.url("/a.pt")) as process:
        wait_for(lambda: [p for p in tmp_path.rglob("*.part") if p.stat().st_size == 700])
        process.kill()
    assert files(tmp_path / "cache") == ["a.pt.part", "a.pt.part.json"]
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY
    assert server.seen("hub")[-1]["Range"] == "bytes=700-"


def test_resumes_by_itself_through_many_cuts_while_bytes_come(hub):
    hub.files[REPO_PATH].faults = [Fault(cut_after=200) for _ in range(6)]
    assert quick(Source(HUB_FILE)).path.read_bytes() == BODY
    ranges = [headers.get("Range") for headers in hub.seen("cdn")]
    assert ranges == [None, *(f"bytes={200 * i}-" for i in range(1, 7))]


def test_stall_times_out_and_resumes(server):
    server.files["/a.pt"] = File(BODY, faults=[Fault(stall_after=1000)])
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY
    assert server.seen("hub")[-1]["Range"] == "bytes=1000-"


def test_server_that_never_answers_fails_after_its_tries(server):
    server.files["/a.pt"] = File(BODY, faults=[Fault(stall_after=0) for _ in range(9)])
    with pytest.raises(DownloadError, match=r"cut after 0 .*3 tries in a row"):
        quick(Source(server.url("/a.pt")))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("linked", "etag", "if_range"),
    [
        (False, '"v2"', True),
        (False, '"v2"', False),  # the server sends the range although its validator has changed
        (True, '"v2"', True),
        (True, '"v1"', True),  # the hub alone tells
    ],
)
def test_changed_file_starts_over(server, linked, etag, if_range):
    """Two versions of one length: joined, they would have the right size."""
    server.files["/a.pt"] = File(BODY, linked=linked, faults=[Fault(cut_after=500)])
    source = Source(server.url("/a.pt"))
    with pytest.raises(DownloadError):
        fetch(source, policy=Policy(tries=1))
    changed = BODY[::-1]
    server.files["/a.pt"] = File(changed, etag=etag, linked=linked, if_range=if_range)
    assert quick(source).path.read_bytes() == changed


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ({"ranges": False}, "bytes=500-"),  # answered with 200 and the whole
        ({"etag": None}, None),
        ({"etag": 'W/"v1"'}, None),
    ],
)
def test_server_that_can_not_resume_sends_the_whole_again(server, file, asked):
    server.files["/a.pt"] = File(BODY, faults=[Fault(cut_after=500)], **file)
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY
    assert server.bodies["/a.pt"] == 2
    assert server.seen("hub")[-1].get("Range") == asked


@pytest.mark.parametrize(("kept", "bodies"), [(len(BODY), 0), (len(BODY) + 9, 1)])
def test_range_that_is_not_satisfiable_means_complete_or_start_over(server, kept, bodies):
    server.files["/a.pt"] = File(BODY)
    url = server.url("/a.pt")
    slot = cache.Slot(cache.directory() / Source(url).relative)
    slot.path.parent.mkdir(parents=True)
    slot.part.write_bytes((BODY + bytes(9))[:kept])
    slot.validator.write_text(json.dumps({"url": url, "etag": '"v1"', "size_bytes": len(BODY)}))
    assert quick(Source(url)).path.read_bytes() == BODY
    assert server.bodies["/a.pt"] == bodies


# Statuses


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusal_goes_to_the_next_source_at_once(server, status):
    server.files["/a.pt"] = File(BODY, faults=[Fault(status=status)])
    server.files["/b.pt"] = File(BODY)
    first, second = Source(server.url("/a.pt")), Source(server.url("/b.pt"))
    fetched = quick(Several(first, second))
    assert fetched.source == second
    assert [path for _, path, _ in server.requests] == ["/a.pt", "/b.pt"]


class Several:
    def __init__(self, *sources):
        self.sources = sources


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(server, status):
    server.files["/a.pt"] = File(BODY, faults=[Fault(status, {"Retry-After": "1"})])
    before = time.monotonic()
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY
    assert time.monotonic() - before >= 1


def test_server_that_asks_to_wait_long_is_left(server):
    server.files["/a.pt"] = File(BODY, faults=[Fault(429, {"Retry-After": "3600"})])
    with pytest.raises(DownloadError, match=r"HTTP 429 .*asks to wait for 3600 s"):
        quick(Source(server.url("/a.pt")))
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date():
    assert transfer._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert transfer._retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 1e9
    assert transfer._retry_after("soon") is None


def test_server_error_is_tried_again(server):
    server.files["/a.pt"] = File(BODY, faults=[Fault(status=500), Fault(status=502)])
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY


def test_failure_names_each_address_status_cache_path_and_what_to_do(server, tmp_path):
    server.files["/a.pt"] = File(BODY, faults=[Fault(status=403)])
    sources = [Source(server.url("/a.pt")), Source(server.url("/none.pt"))]
    with pytest.raises(DownloadError) as caught:
        quick(Several(*sources))
    message = str(caught.value)
    assert f"{sources[0].url}: HTTP 403 Forbidden" in message
    assert f"{sources[1].url}: HTTP 404 Not Found" in message
    for source in sources:
        assert str(tmp_path / "cache" / source.relative) in message
    assert "GRW_KERAS_MIRROR" in message


def test_unreachable_server_is_one_clear_error():
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1/a\.pt: no answer: ConnectionRefused"):
        quick(Source("http://127.0.0.1:1/a.pt"))


# Credentials and redirects


def test_token_goes_to_the_hub_and_not_where_it_redirects(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    quick(Source(HUB_FILE))
    assert [headers.get("Authorization") for headers in hub.seen("hub")] == ["Bearer secret"]
    assert [headers.get("Authorization") for headers in hub.seen("cdn")] == [None]


def test_no_credentials_go_to_other_hosts(server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(stat.S_IRUSR)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.files["/a.pt"] = File(BODY, linked=True)
    quick(Source(server.url("/a.pt")))
    assert all("Authorization" not in headers for _, _, headers in server.requests)


def test_signature_of_a_redirect_is_not_in_the_error(hub):
    hub.files[REPO_PATH].faults = [Fault(status=403)]
    with pytest.raises(DownloadError, match="HTTP 403 Forbidden from 127") as caught:
        quick(Source(HUB_FILE))
    assert "signature=" not in str(caught.value)


def test_redirects_must_stay_on_http_and_off_plain_http_after_https():
    for location in ("http://a.org/x", "file:///etc/passwd", None):
        with pytest.raises(transfer.Refused, match="a redirect to"):
            transfer.next_address("https://a.org/b", location)


def test_endless_redirects_end(server):
    server.files["/a.pt"] = File(
        BODY, faults=[Fault(302, {"Location": "/a.pt"}) for _ in range(40)]
    )
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        quick(Source(server.url("/a.pt")))


# Processes


@contextlib.contextmanager
def start(url: str, **options):
    """A process of its own that fetches `url` and prints the path."""
    code = (
        "import sys; from grw_keras.zoo.download import *\n"
        "print(fetch(Source(sys.argv[1]), progress=False).path)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        yield process


def wait_for(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def test_two_processes_fetch_once_and_both_have_it(server):
    go = threading.Event()
    server.files["/a.pt"] = File(BODY, faults=[Fault(wait=go)])
    url = server.url("/a.pt")
    with start(url) as first:
        wait_for(lambda: server.requests)  # the first one holds the lock and waits for bytes
        with start(url) as second:
            assert "Waiting for another process" in second.stderr.readline()
            go.set()
            paths = [process.communicate(timeout=20)[0].strip() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert paths[0] == paths[1]
    assert Path(paths[0]).read_bytes() == BODY
    assert len(server.requests) == 1


def test_waiting_for_a_lock_ends(server):
    source = Source(server.url("/a.pt"))
    slot = cache.Slot(cache.directory() / source.relative)
    with (
        cache.locked(slot, 1),
        pytest.raises(TimeoutError, match=r"for more than 0\.05 s.*a\.pt\.lock"),
    ):
        fetch(source, policy=Policy(lock_timeout_s=0.05))


def test_fetching_needs_no_tensorflow():
    code = "import sys, grw_keras.zoo.manifest as m; m.entries(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tf_keras", "keras"} & set(run.stdout.split())


# Offline, mirrors, the cache's folder


def test_offline_uses_the_cache_and_only_the_cache(hub, monkeypatch):
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"(?s)a\.pt: not tried, offline.*GRW_KERAS_OFF"):
        quick(Source(HUB_FILE))
    assert not hub.requests
    fetched = quick(Source(HUB_FILE), offline=False)
    assert quick(Source(HUB_FILE)) == fetched
    assert len(hub.requests) == 2  # the redirect and the file


def test_bad_value_of_the_offline_switch_is_refused(monkeypatch):
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "perhaps")
    with pytest.raises(ValueError, match=r"GRW_KERAS_OFFLINE must be 1 or 0.*'perhaps'"):
        quick(Source(HUB_FILE))


def test_file_put_there_by_hand_is_used(tmp_path):
    source = Source(HUB_FILE)
    path = tmp_path / "cache" / source.relative
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert quick(source).verified == "nothing: put there by hand, and no hash is published"
    assert quick(Source(HUB_FILE, sha256=SHA256)).verified == "sha256 of the manifest"
    with pytest.raises(FileNotFoundError, match="wrong hash"):
        quick(Source(HUB_FILE, sha256="0" * 64), offline=True)


@pytest.mark.parametrize("relative", ["a.pt", "huggingface.co/owner/repo/resolve/main/a.pt"])
@pytest.mark.parametrize("kind", ["folder", "address"])
def test_mirror_is_looked_at_before_the_sources(hub, tmp_path, monkeypatch, kind, relative):
    if kind == "folder":
        copy = tmp_path / "mirror" / relative
        copy.parent.mkdir(parents=True)
        copy.write_bytes(BODY)
        mirror = str(tmp_path / "mirror")
    else:
        hub.files[f"/mirror/{relative}"] = File(BODY)
        mirror = hub.url("/mirror/")
    monkeypatch.setenv("GRW_KERAS_MIRROR", f"{tmp_path / 'empty'}{os.pathsep}{mirror}")
    fetched = quick(Source(HUB_FILE, sha256=SHA256), offline=kind == "folder")
    assert fetched.path.read_bytes() == BODY
    assert REPO_PATH not in [path for _, path, _ in hub.requests]


def test_wrong_file_of_a_mirror_is_set_aside_for_the_source(hub, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"something else")
    fetched = quick(Source(HUB_FILE, sha256=SHA256), mirrors=[tmp_path])
    assert fetched.path.read_bytes() == BODY
    assert list(fetched.path.parent.glob("*.rejected-*"))


@pytest.mark.parametrize(
    ("value", "mirrors"),
    [
        ("", []),
        ("/a:/b,/c", [Path("/a"), Path("/b"), Path("/c")]),
        ("http://h:80/x:/c", ["http://h:80/x", Path("/c")]),
        ("/a:https://h/x, rel", [Path("/a"), "https://h/x", Path("rel")]),
    ],
)
@pytest.mark.skipif(os.pathsep != ":", reason="the cases are written with a colon")
def test_mirrors_are_separated_by_commas_or_as_in_path(monkeypatch, value, mirrors):
    monkeypatch.setenv("GRW_KERAS_MIRROR", value)
    assert download._mirrors(None) == mirrors


def test_mirrors_with_passwords_are_refused_without_showing_them():
    with pytest.raises(ValueError, match="no user name or password") as caught:
        quick(Source(HUB_FILE), mirrors=["https://me:secret@host/"])
    assert "secret" not in str(caught.value)


def test_cache_is_the_platforms_unless_told(monkeypatch, tmp_path):
    assert cache.directory() == tmp_path / "cache"
    assert cache.directory(tmp_path / "own") == tmp_path / "own"
    monkeypatch.delenv("GRW_KERAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache.directory() == tmp_path / "xdg" / "grw_keras"


def test_cache_that_can_not_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can't write to the cache: .*GRW_KERAS_CACHE.*/file/"):
        quick(Source(HUB_FILE), cache_dir=tmp_path / "file")


def test_disk_that_takes_no_more_ends_it_with_a_clear_error(server, tmp_path):
    resource = pytest.importorskip("resource")
    server.files["/a.pt"] = File(BODY)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))}
    with start(server.url("/a.pt"), **limit) as process:
        _, errors = process.communicate(timeout=20)
    assert re.search(r"can't write to the cache: File too large\. .*GRW_KERAS_CACHE", errors)
    assert errors.rstrip().endswith("a.pt.part")
    assert process.returncode == 1
    assert "a.pt" not in files(tmp_path)
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY


def test_bad_sources_are_refused():
    for options in (
        {"url": "ftp://host/a.pt"},
        {"url": "hf://owner/a.pt"},
        {"url": "https://host/"},
        {"url": "https://host/../../a.pt"},
        {"url": "https://host/a.pt", "file": "../a.pt"},
        {"url": "https://host/a.pt", "sha256": "123"},
        {"url": "https://host/a.pt", "size_bytes": 0},
    ):
        with pytest.raises(ValueError, match=r"Received: "):
            Source(**options)


def test_addresses_that_differ_in_the_query_alone_have_places_of_their_own():
    first, second = (Source(f"https://host:8/x/a.pt?v={v}").relative for v in (1, 2))
    assert first != second
    assert first.name == second.name == "a.pt"
    assert first.parts[0] == "host_8"


def test_revision_of_a_hub_file(hub, tmp_path):
    hub.files["/owner/repo/resolve/v2/sub/b.pt"] = File(BODY, linked=True)
    assert quick(Source("hf://owner/repo/sub/b.pt@v2")).path.read_bytes() == BODY


# What is shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_is_drawn_on_a_terminal_only_and_a_line_is_logged(hub, monkeypatch, caplog, terminal):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    with caplog.at_level("INFO", logger="grw_keras"):
        fetch(Source(HUB_FILE), policy=QUICK)
    assert ("a.pt" in sys.stderr.getvalue()) == terminal
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Fetched")]
    assert len(lines) == 1
    assert lines[0].endswith("verified: the hub's LFS sha256")


# Archives


def archive(*members: tuple[str, object]) -> bytes:
    """A .tar.gz of (name, bytes) files, and (name, attributes of a TarInfo)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            for key, value in (content if isinstance(content, dict) else {}).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_archive_is_unpacked_beside_itself(server, tmp_path):
    body = archive(("model/a.index", BODY), ("model/a.data", b"data"))
    server.files["/download"] = File(body)
    source = Source(server.url("/download"), file="model.tar.gz")
    fetched = quick(source)
    assert fetched.path.name == f"model-{hashlib.sha256(body).hexdigest()[:8]}"
    assert (fetched.path / "model" / "a.index").read_bytes() == BODY
    assert quick(source, offline=True) == fetched
    changed = archive(("other", b"1"))
    (fetched.path.parent / "model.tar.gz").write_bytes(changed)
    (fetched.path.parent / "model.tar.gz.json").unlink()
    assert [p.name for p in quick(source, offline=True).path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"x"),
        ("a/../../evil", b"x"),
        ("/evil", b"x"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "../../evil"}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "good"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
    ],
    ids=lambda member: f"{member[0]}",
)
def test_archive_with_anything_but_plain_members_is_refused(server, tmp_path, member):
    server.files["/a.tar.gz"] = File(archive(("good", b"x"), member))
    with pytest.raises(DownloadError, match=r"a\.tar\.gz\.rejected-"):
        quick(Source(server.url("/a.tar.gz")))
    assert [name.partition("-")[0] for name in files(tmp_path)] == ["a.tar.gz.rejected"]
    assert not [p for p in tmp_path.rglob("a-*") if p.is_dir()]


def test_archive_that_is_cut_or_none_is_refused(server, tmp_path):
    whole = archive(("a", os.urandom(5000)))
    for name, body in {"half": whole[:2500], "empty": b"", "page": b"<html>sorry</html>"}.items():
        server.files[f"/{name}.tar.gz"] = File(body)
        with pytest.raises(DownloadError, match=r"can't be unpacked|the file is empty"):
            quick(Source(server.url(f"/{name}.tar.gz")))
    assert not [name for name in files(tmp_path) if "rejected" not in name]
