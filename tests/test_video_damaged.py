"""Videos that are damaged, cut short or none at all, and arguments that can't be."""

import os
import pickle
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from grw_keras.data.video import BadVideoError, probe, read_frames
from tests import video_files
from tests.video_files import decoded_fully, number_of, numbered, write


def test_sparing_gives_way_where_a_wanted_frame_is_damaged(tmp_path):
    options = {"bf": "3", "b-pyramid": "none", "b_strategy": "0", "g": "20"}
    times = np.arange(1, 20) / 10
    for number in range(3, 25, 2):
        path = video_files.damage(write(tmp_path / "a.mkv", options=options), [number])
        np.testing.assert_array_equal(read_frames(path, times), decoded_fully(path, times))


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_the_last_good_frame_stays_where_packets_are_damaged(tmp_path, name):
    # Without references between frames, damage stays where it is.
    path = write(
        tmp_path / name, "ffv1", 30, options={"slicecrc": "1", "g": "1"}, pix_fmt="yuv444p"
    )
    video_files.damage(path, [10, 11, 12, 20])
    numbers = [number_of(image) for image in read_frames(path, np.arange(30) / 30)]
    assert numbers == [{10: 9, 11: 9, 12: 9, 20: 19}.get(i, i) for i in range(30)]
    assert [number_of(image) for image in read_frames(path, [0, 12 / 30])] == [0, 9]


def test_frames_that_ffmpeg_patched_up_are_not_shown(tmp_path):
    path = write(tmp_path / "a.mkv", frames=20, options={"g": "1", "qp": "4"})
    video_files.damage(path, [10, 11], kept=0.5)
    numbers = [number_of(image) for image in read_frames(path, np.arange(20) / 30)]
    assert numbers == [9 if i in (10, 11) else i for i in range(20)]


@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv", "cut.mp4"])
def test_a_truncated_file_has_the_duration_and_frames_that_are_left(tmp_path, name):
    path = tmp_path / name
    write(path, "mjpeg", 60, pix_fmt="yuvj420p")
    if name.endswith("mp4"):
        _move_index_to_front(path)
    video_files.truncate(path, 0.5)
    info = probe(path)
    assert 0.7 < info.duration_s < 1.1
    assert info.frames == pytest.approx(30 * info.duration_s, abs=1)
    assert number_of(read_frames(path, [5.0])[0]) == pytest.approx(info.frames - 1, abs=1)


def _move_index_to_front(path):
    moved = path.with_name("moved.mp4")
    with (
        av.open(str(path)) as source,
        av.open(str(moved), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    moved.replace(path)


def bad_files(folder):
    """Bad files and what is said of them."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "text.txt").write_text("not a video either\n" * 100)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\nother.ts\n")
    (folder / "noise.avi").write_bytes(np.random.default_rng(0).bytes(10_000))
    (folder / "folder.mp4").mkdir()
    cv2.imwrite(str(folder / "still.png"), numbered(1))
    (folder / "still.png").rename(folder / "still.mp4")
    write(folder / "no_index.mp4")
    video_files.truncate(folder / "no_index.mp4", 0.5)
    video_files.write_audio(folder / "audio.mp4")
    video_files.write_zero_duration(folder / "zero.mkv")
    video_files.damage(write(folder / "no_picture.avi", "mpeg4", 3), range(3))
    return {
        "missing.mp4": "no such file",
        "empty.mp4": "it is empty",
        "text.mp4": "not a video",
        "text.txt": "not a video",
        "list.mp4": "not a video",
        "noise.avi": "not a video",
        "folder.mp4": "not a file",
        "still.mp4": "not a video",
        "no_index.mp4": "not a video",
        "audio.mp4": "no video stream",
        "zero.mkv": "duration is zero",
        "no_picture.avi": "not one of its frames",
    }


def test_bad_files_are_named_with_the_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        readers = [probe] if "zero" in name else [probe, lambda path: read_frames(path, [0.0])]
        for reader in readers:
            with pytest.raises(BadVideoError, match=reason) as caught:
                reader(tmp_path / name)
            assert caught.value.path == str(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)


def test_bad_video_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(BadVideoError("a.mp4", "it is empty")))
    assert (type(error), error.path, error.reason) == (BadVideoError, "a.mp4", "it is empty")
    assert str(error) == "a.mp4: it is empty"


@pytest.mark.parametrize(
    ("times", "size", "message"),
    [
        ([], None, "`times_s` must be a list"),
        (0.5, None, "`times_s` must be a list"),
        ([-0.1, 0], None, "`times_s` must be a list of times >= 0"),
        ([0, -1], None, "`times_s` must be a list of times >= 0"),
        ([float("nan")], None, "`times_s` must be"),
        ([1, 0], None, "must ascend; sort them first"),
        ([0], 0, "`size` must be a positive integer"),
        ([0], 1.5, "`size` must be a positive integer"),
    ],
)
def test_wrong_times_and_sizes_are_refused(times, size, message):
    with pytest.raises(ValueError, match=message):
        read_frames("any.mp4", times, size)


def test_damaged_files_print_nothing_leave_nothing_open_and_need_no_tensorflow(tmp_path):
    good = write(tmp_path / "good.mp4", frames=30)
    damaged = video_files.damage(write(tmp_path / "bad.mp4", frames=30), [3, 4, 9])
    (tmp_path / "text.mp4").write_text("x" * 1000)
    code = (
        "import os, sys\n"
        "from grw_keras.data.video import *\n"
        "before = os.listdir('/proc/self/fd') if os.path.isdir('/proc') else []\n"
        f"for path in ({str(good)!r}, {str(damaged)!r}, {str(tmp_path / 'text.mp4')!r}):\n"
        "    for read in (probe, lambda p: read_frames(p, [0, 0.5], 16)):\n"
        "        try: read(path)\n"
        "        except BadVideoError: pass\n"
        "after = os.listdir('/proc/self/fd') if os.path.isdir('/proc') else []\n"
        "assert len(before) == len(after), (before, after)\n"
        "assert 'tensorflow' not in sys.modules and 'tf_keras' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
