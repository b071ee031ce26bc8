"""Downloads: what is checked, cut, refused, asked for, and shared between processes."""

import base64
import contextlib
import hashlib
import json
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grw_keras.zoo import cache, transfer
from grw_keras.zoo.download import DownloadError, Source, fetch
from grw_keras.zoo.transfer import Policy
from tests.hub_server import BODY, HUB_FILE, REPO_PATH, SHA256, Fault, File, files, quick

pytestmark = pytest.mark.usefixtures("own_cache")


# What is checked


@pytest.mark.parametrize("size_bytes", [0, -5, 1.5, True])
def test_a_size_that_is_none_is_refused(size_bytes):
    with pytest.raises(ValueError, match="`size_bytes` must be positive"):
        Source(HUB_FILE, size_bytes=size_bytes)


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


def test_disk_that_takes_no_more_ends_it_with_a_clear_error(server, tmp_path):
    resource = pytest.importorskip("resource")
    server.files["/a.pt"] = File(BODY)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))}
    with start(server.url("/a.pt"), **limit) as process:
        _, errors = process.communicate(timeout=20)
    assert re.search(r"can't write to the cache: File too large\. .*GRW_KERAS_CACHE", errors)
    assert re.search(r"a\.pt\.part$", errors, re.MULTILINE)
    assert process.returncode == 1
    assert "a.pt" not in files(tmp_path)
    assert quick(Source(server.url("/a.pt"))).path.read_bytes() == BODY


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
