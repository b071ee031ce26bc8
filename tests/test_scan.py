"""Probing all videos before a run: what is bad, how much of it is put up with, what is kept."""

import csv
import dataclasses
import json
import logging
import os
import pickle
import shutil
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from grw_keras.data import scan as scan_module
from grw_keras.data.clips import Clip, ClipSet
from grw_keras.data.scan import BadVideo, Scan, TooManyBadVideosError, scan
from grw_keras.data.sources import from_folder
from grw_keras.data.video import BadVideoError, VideoInfo, probe

TEN_SECONDS = VideoInfo(10.0, 100, 32, 24, 0, "h264")


def clip_set(*clips: Clip | str | Path) -> ClipSet:
    made = [clip if isinstance(clip, Clip) else Clip(str(clip), "x") for clip in clips]
    return ClipSet(tuple(made), ("x",))


@pytest.fixture
def probed(monkeypatch):
    """The paths that were opened; a video's text is what is wrong with it."""
    opened = []

    def fake_probe(path):
        opened.append(path)
        text = Path(path).read_text()
        if text:
            raise BadVideoError(path, text)
        return TEN_SECONDS

    monkeypatch.setattr(scan_module, "probe", fake_probe)
    return opened


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A real video of 8 frames, a second long."""
    path = tmp_path_factory.mktemp("video") / "good.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 32, 16
        for level in range(8):
            image = np.full([16, 32, 3], 30 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


def test_each_video_is_opened_once(tmp_path, probed):
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    good.touch()
    bad.write_text("it is torn")
    parts = [Clip(str(good), "x", 0.0, 5.0), Clip(str(good), "x", 5.0), Clip(str(bad), "x", 0, 1)]
    calls = []
    found = scan(clip_set(*parts, bad), progress=lambda *counts: calls.append(counts))
    assert probed == [str(good), str(bad)]
    assert calls == [(1, 2), (2, 2)]
    assert found.infos == {str(good): TEN_SECONDS}
    assert found.bad == (BadVideo(str(bad), "it is torn", clips=2),)
    assert found.clips == 4
    assert found.good(clip_set(*parts)).clips == tuple(parts[:2])


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason"),
    [
        (0.0, None, ""),
        (0.0, 10.0, ""),
        (9.99, None, ""),
        (9.0, 12.0, ""),
        (10.0, None, r"starts at 10 s, but the video lasts 10 s"),
        (11.0, 12.0, r"starts at 11 s"),
        (3.0, 3.0, r"ends at 3 s, not after its start at 3 s"),
        (3.0, 2.5, r"v.mp4@3-2.5 ends at 2.5 s, not after"),
    ],
)
def test_parts_that_are_empty_are_bad(tmp_path, probed, start_s, end_s, reason):
    path = tmp_path / "v.mp4"
    path.touch()
    other = Clip(str(path), "x", 1.0, 2.0)
    data = clip_set(Clip(str(path), "x", start_s, end_s, name=f"v.mp4@{start_s:g}-{end_s}"), other)
    found = scan(data)
    assert [bad.path for bad in found.bad] == [str(path)] * bool(reason)
    assert all(reason in bad.reason for bad in found.bad)
    assert len(found.good(data)) == (1 if reason else 2)
    assert found.good(data).clips[-1] == other


def test_a_video_without_duration_is_bad(monkeypatch):
    monkeypatch.setattr(
        scan_module, "probe", lambda path: dataclasses.replace(TEN_SECONDS, duration_s=0.0)
    )
    assert "lasts 0 s" in scan(clip_set("a.mp4")).bad[0].reason


def test_good_clips_of_another_set(tmp_path, probed):
    (tmp_path / "a.mp4").touch()
    found = scan(clip_set(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match=r"videos that were scanned.*b\.mp4"):
        found.good(clip_set(tmp_path / "b.mp4"))


def test_real_videos_alike_here_and_in_workers(tmp_path, video):
    files = {
        "good.mp4": video.read_bytes(),
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 100,
        "ü cut.avi": video.read_bytes()[: video.stat().st_size // 3],
    }
    (tmp_path / "hop").mkdir()
    for name, content in files.items():
        (tmp_path / "hop" / name).write_bytes(content)
    (tmp_path / "hop" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    data = from_folder(tmp_path)
    here, there = scan(data), scan(data, workers=2)
    assert here == there
    good = str(tmp_path / "hop" / "good.mp4")
    assert here.infos == {good: probe(good)}
    assert here.infos[good].duration_s == pytest.approx(1.0)
    assert {Path(bad.path).name for bad in here.bad} == {*files, "broken.mp4"} - {"good.mp4"}
    assert [clip.name for clip in here.good(data).clips] == ["hop/good.mp4"]
    report = tmp_path / "bad.csv"
    here.write_report(report)
    with open(report, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            *([bad.path, bad.reason] for bad in here.bad),
        ]


def dying_probe(path):
    """Stands in for `_probe` in workers, where it is imported by its name."""
    name = Path(path).name
    if "kill" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "disk" in name:
        return OSError("the disk is gone")
    return TEN_SECONDS


@pytest.mark.slow
def test_a_video_that_kills_its_process_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_module, "_probe", dying_probe)
    monkeypatch.setattr(scan_module, "_BATCH", 3)
    names = ["0", "kill1", "2", "3", "kill4", "5", "disk6", "7", "8", "9"]
    for name in names:
        (tmp_path / name).touch()
    data = clip_set(*(tmp_path / name for name in names))
    calls = []
    cache = tmp_path / "cache.json"
    found = scan(data, 1, cache=cache, progress=lambda *counts: calls.append(counts))
    assert [(Path(bad.path).name, bad.reason) for bad in found.bad] == [
        ("kill1", "the process that read it died"),
        ("kill4", "the process that read it died"),
        ("disk6", "the disk is gone"),
    ]
    assert len(found.infos) == 7
    assert calls == [(done, 10) for done in range(1, 11)]
    # What may have been an accident is tried again next time.
    kept = json.loads(cache.read_text())["videos"]
    assert sorted(Path(path).name for path in kept) == ["0", "2", "3", "5", "7", "8", "9"]


def test_a_second_scan_opens_what_has_changed(tmp_path, probed):
    names = ["a.mp4", "b.mp4", "torn.mp4", "ü.mp4"]
    for name in names:
        (tmp_path / name).write_text("torn" if name == "torn.mp4" else "")
    data = clip_set(*(tmp_path / name for name in names))
    cache = tmp_path / "deep" / "cache.json"
    first = scan(data, cache=cache)
    assert len(probed) == 4
    calls = []
    assert scan(data, cache=cache, progress=lambda *counts: calls.append(counts)) == first
    assert len(probed) == 4
    assert calls == [(4, 4)]
    os.utime(tmp_path / "a.mp4", ns=(0, 12345))
    (tmp_path / "b.mp4").write_text("it has been torn")
    (tmp_path / "ü.mp4").unlink()
    found = scan(data, cache=cache)
    assert [Path(path).name for path in probed[4:]] == ["a.mp4", "b.mp4", "ü.mp4"]
    assert [Path(bad.path).name for bad in found.bad] == ["b.mp4", "torn.mp4", "ü.mp4"]
    # Another set leaves the findings about the first in place.
    (tmp_path / "new.mp4").touch()
    scan(clip_set(tmp_path / "new.mp4"), cache=cache)
    scan(clip_set(tmp_path / "a.mp4", tmp_path / "torn.mp4"), cache=cache)
    assert [Path(path).name for path in probed[7:]] == ["new.mp4"]
    assert [path.name for path in cache.parent.iterdir()] == ["cache.json"]


def test_what_was_found_before_an_interruption_is_kept(tmp_path, probed):
    paths = [tmp_path / f"{number}.mp4" for number in range(4)]
    for path in paths:
        path.touch()

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(clip_set(*paths), cache=tmp_path / "cache.json", progress=interrupt)
    scan(clip_set(*paths), cache=tmp_path / "cache.json")
    assert probed == [str(path) for path in paths]


INFO = dataclasses.asdict(TEN_SECONDS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": "grw_keras scan 1", "vid',
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b'{"format": "grw_keras scan 0", "videos": {}}',
        b'{"format": "grw_keras scan 1", "videos": []}',
        b'{"format": "grw_keras scan 1", "videos": {"a": 3}}',
        b'{"format": "grw_keras scan 1", "videos": {"a": [1, 2, {"width": 3}]}}',
        b'{"format": "grw_keras scan 1", "videos": {"a": [1, 2, null]}}',
    ],
)
def test_a_damaged_cache_is_ignored(tmp_path, probed, caplog, content):
    (tmp_path / "a.mp4").touch()
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    with caplog.at_level(logging.WARNING, "grw_keras"):
        found = scan(clip_set(tmp_path / "a.mp4"), cache=cache)
    assert "cache.json is no file of findings" in caplog.text
    assert len(found.infos) == 1
    scan(clip_set(tmp_path / "a.mp4"), cache=cache)
    assert len(probed) == 1


def test_a_cache_that_can_not_be_written_does_not_stop_the_scan(tmp_path, probed, caplog):
    (tmp_path / "a.mp4").touch()
    with caplog.at_level(logging.WARNING, "grw_keras"):
        found = scan(clip_set(tmp_path / "a.mp4"), cache=tmp_path / "a.mp4" / "cache.json")
    assert len(found.infos) == 1
    assert "can't be kept in" in caplog.text


def found_bad(count: int, clips: int = 100) -> Scan:
    return Scan({}, tuple(BadVideo(f"/v/{n}.mp4", f"torn {n}") for n in range(count)), clips)


@pytest.mark.parametrize(("count", "max_share"), [(0, 0), (5, 0.05), (100, 1)])
def test_a_share_of_bad_videos_is_put_up_with(count, max_share):
    found_bad(count).check_share(max_share)


def test_too_many_bad_videos_are_listed():
    with pytest.raises(TooManyBadVideosError) as caught:
        found_bad(25).check_share(0.05, report="runs/bad.csv")
    text = str(caught.value)
    assert text.startswith("25 of 100 clips can't be used, 25.0%; at most 5.0% may be lost.")
    assert "All of them: runs/bad.csv." in text
    assert "/v/19.mp4: torn 19\n  and 5 more" in text
    assert "/v/20.mp4" not in text
    assert isinstance(caught.value, ValueError)
    with pytest.raises(TooManyBadVideosError, match=r"1 of 100 .*\n  /v/0.mp4: torn 0$"):
        found_bad(1).check_share(0)


def test_every_clip_of_a_bad_video_counts():
    found = Scan({}, (BadVideo("a.mp4", "torn", clips=6),), 100)
    found.check_share(0.06)
    with pytest.raises(TooManyBadVideosError, match="6 of 100"):
        found.check_share(0.05)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`workers` must be >= 0. Received: -1"):
        scan(clip_set("a.mp4"), -1)
    with pytest.raises(ValueError, match=r"`max_share` must be in \[0, 1\]. Received: 5"):
        found_bad(1).check_share(5)


def test_findings_can_be_sent_to_another_process(tmp_path, probed):
    (tmp_path / "a.mp4").touch()
    found = scan(clip_set(tmp_path / "a.mp4", tmp_path / "b.mp4"))
    found.good(clip_set(tmp_path / "a.mp4"))
    assert pickle.loads(pickle.dumps(found)) == found


def test_an_empty_set_has_nothing_to_open():
    found = scan(clip_set(), workers=2)
    assert found == Scan({}, (), 0)
    found.check_share(0)


def test_real_folder(shared, tmp_path):
    (tmp_path / "data").mkdir()
    source = shared / "videos" / "ut_interaction"
    for label in ("hugging", "kicking"):
        (tmp_path / "data" / label).symlink_to(source / label)
    torn = tmp_path / "data" / "torn"
    torn.mkdir()
    whole = min((source / "pushing").iterdir())
    (torn / "head.avi").write_bytes(whole.read_bytes()[:200])
    shutil.copy(Path(__file__), torn / "code.avi")
    data = from_folder(tmp_path / "data")
    found = scan(data, cache=tmp_path / "cache.json")
    assert len(found.infos) == 40
    assert {Path(bad.path).name for bad in found.bad} == {"head.avi", "code.avi"}
    assert all(0.5 < info.duration_s < 20 for info in found.infos.values())
    assert len(found.good(data)) == 40
