"""The cache of downloads: offline, mirrors, its folder, archives, and what is shown."""

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from grw_keras.zoo import cache, download
from grw_keras.zoo.download import DownloadError, Source, fetch
from tests.hub_server import BODY, HUB_FILE, QUICK, REPO_PATH, SHA256, File, files, quick

pytestmark = pytest.mark.usefixtures("own_cache")


def test_offline_uses_the_cache_and_only_the_cache(hub, monkeypatch):
    monkeypatch.setenv("GRW_KERAS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"(?s)a\.pt: not tried, offline.*GRW_KERAS_OFF"):
        quick(Source(HUB_FILE))
    assert not hub.requests
    fetched = quick(Source(HUB_FILE), offline=False)
    assert quick(Source(HUB_FILE)) == fetched
    assert len(hub.requests) == 2  # the redirect and the file


def test_mirror_that_is_no_help_is_named(tmp_path):
    mirrors = [tmp_path / "gone", tmp_path]
    with pytest.raises(FileNotFoundError) as raised:
        quick(Source(HUB_FILE), offline=True, mirrors=mirrors)
    assert f"{tmp_path / 'gone'}: no such folder" in str(raised.value)
    assert f"{tmp_path}: holds no a.pt" in str(raised.value)


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
