"""Every claim about decoding, against numbers drawn into the frames and against full decoding."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from grw_keras.data import video, video_file
from grw_keras.data.video import probe, read_frames
from grw_keras.data.video_file import VideoFile
from tests.video_files import decoded_fully, number_of, write

# Of each container and codec: file name, encoder, pixel format, options.
KINDS = [
    ("h264.mp4", "libx264", "yuv420p", {"bf": "3", "g": "12"}),
    ("h264.mkv", "libx264", "yuv420p", {"bf": "3", "g": "12"}),
    ("h264.mov", "libx264", "yuv420p", {"bf": "2", "g": "12", "x264-params": "open-gop=1"}),
    ("h264.avi", "libx264", "yuv420p", {"bf": "2", "g": "12"}),
    ("h264.ts", "libx264", "yuv420p", {"bf": "3", "g": "12"}),
    ("hevc.mp4", "libx265", "yuv420p", {"g": "12"}),
    ("mpeg4.avi", "mpeg4", "yuv420p", {"bf": "0"}),
    ("mpeg4_b.avi", "mpeg4", "yuv420p", {"bf": "2"}),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    ("grey.mp4", "libx264", "gray", {"g": "12"}),
    ("full_chroma.mkv", "libx264", "yuv444p", {"g": "12"}),
    ("alpha.mov", "png", "rgba", {}),
]
IDS = [kind[0] for kind in KINDS]


@pytest.fixture(scope="module", params=KINDS, ids=IDS)
def numbered_file(request, tmp_path_factory):
    """A file of 60 numbered frames, 30 a second."""
    name, codec, pix_fmt, options = request.param
    path = tmp_path_factory.mktemp("videos") / name
    return write(path, codec, pix_fmt=pix_fmt, options=options)


def literal_display(starts_s, times_s):
    """Which frame is on display at each time, by the definition."""
    return [
        max([i for i, start in enumerate(starts_s) if start <= t + 6e-4] + [0]) for t in times_s
    ]


def test_every_frame_is_on_display_at_its_own_time(numbered_file):
    numbers = [number_of(image) for image in read_frames(numbered_file, np.arange(60) / 30)]
    assert numbers == list(range(60))


@pytest.mark.parametrize("times", [np.arange(10) / 5, np.arange(24) / 12, [0.99, 1.01, 1.99]])
def test_the_last_frame_to_have_appeared_is_on_display(numbered_file, times):
    numbers = [number_of(image) for image in read_frames(numbered_file, times, 40)]
    assert numbers == literal_display(np.arange(60) / 30, times)


@pytest.mark.parametrize("start", [1.05, 1.2, 1.5, 1.7, 1.95])
def test_seeking_and_skipping_give_what_decoding_all_frames_gives(numbered_file, start):
    times = start + np.arange(4) / 12
    np.testing.assert_array_equal(
        read_frames(numbered_file, times), decoded_fully(numbered_file, times)
    )


def test_seeking_leaves_most_of_a_long_file_undecoded(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", frames=250, options={"g": "25", "bf": "2"})
    decoded = []
    decode = VideoFile.decode
    monkeypatch.setattr(
        VideoFile, "decode", lambda self, packet: decoded.append(packet) or decode(self, packet)
    )
    assert [number_of(image) for image in read_frames(path, [8.0, 8.2])] == [240, 246]
    assert len(decoded) < 80


@pytest.mark.parametrize("early_s", [0.0, -1.0])
def test_an_index_that_leads_too_far_is_not_trusted(tmp_path, monkeypatch, early_s):
    path = write(tmp_path / "a.mp4", frames=120, options={"g": "12", "bf": "3"})
    monkeypatch.setattr(video_file, "_SEEK_EARLY_S", early_s)
    for start in range(60, 75):
        numbers = [
            number_of(image) for image in read_frames(path, np.arange(start, start + 9) / 30)
        ]
        assert numbers == list(range(start, start + 9))


def test_unwanted_frames_that_no_other_needs_are_not_decoded(tmp_path):
    path = write(
        tmp_path / "b.mp4", frames=200, options={"bf": "3", "b-pyramid": "none", "g": "50"}
    )
    with VideoFile(path) as file:
        selection = video.Selection(file)
        selection.ticks = [0]
        count = sum(1 for _ in selection.frames(file.frames(selection.packets(file.packets()))))
    assert count < 120


@pytest.mark.parametrize("name", ["start.mkv", "start.ts", "start.mp4"])
def test_times_count_from_the_first_frame(tmp_path, name):
    ticks = [90000 * 3 + 3000 * i for i in range(60)]
    path = write(tmp_path / name, ticks=ticks, time_base=Fraction(1, 90000), options={"g": "12"})
    assert [number_of(image) for image in read_frames(path, [0, 0.5, 1.5])] == [0, 15, 45]
    assert probe(path).duration_s == pytest.approx(2, abs=0.002)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_goes_by_time_stamps(tmp_path, name):
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(rng.integers(5, 400, 79))])
    path = write(
        tmp_path / name, frames=80, ticks=starts.tolist(), time_base=Fraction(1, 1000),
        options={"bf": "2", "g": "20"},
    )  # fmt: skip
    for times in (np.arange(0, starts[-1] / 1000, 0.2), np.arange(5, 9, 0.013)):
        numbers = [number_of(image) for image in read_frames(path, times)]
        assert numbers == literal_display(starts / 1000, times)


def test_gif_frames_stay_for_their_own_time(tmp_path):
    starts = [0, 10, 15, 80, 90]
    path = write(
        tmp_path / "a.gif", "gif", 5, ticks=starts, time_base=Fraction(1, 100), pix_fmt="rgb8"
    )
    times = np.arange(20) / 20
    numbers = [number_of(image) for image in read_frames(path, times, 32)]
    assert numbers == literal_display(np.array(starts) / 100, times)


def test_times_that_matroska_rounds_down_count_as_reached(tmp_path):
    # Frame 2 of 30 a second is at 66.67 ms, written as 67 ms: 15 a second must still find it.
    path = write(tmp_path / "a.mkv")
    numbers = [number_of(image) for image in read_frames(path, np.arange(30) / 15)]
    assert numbers == list(range(0, 60, 2))


def test_a_frame_asked_for_again_is_converted_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", frames=10)
    calls = []
    convert = video._rgb
    monkeypatch.setattr(video, "_rgb", lambda *args: calls.append(1) or convert(*args))
    images = read_frames(path, [0, 0, 0.01, 0.1, 5, 6])
    assert [number_of(image) for image in images] == [0, 0, 0, 3, 9, 9]
    assert len(calls) == 3


# The four corners of an upright picture, and how it is stored when it asks for a rotation.
CORNERS = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_upright(tmp_path, degrees, mirrored):
    upright = CORNERS.repeat(32, 0).repeat(40, 1)
    stored = np.rot90(upright[:, ::-1] if mirrored else upright, -degrees // 90)
    path = write(
        tmp_path / "a.mp4",
        frames=[stored] * 3,
        pix_fmt="yuv444p",
        change=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    info = probe(path)
    assert (info.width, info.height) == (80, 64)
    if not mirrored:
        assert info.rotation == degrees
    whole = read_frames(path, [0])[0]
    assert whole.shape == (64, 80, 3)
    for image in (whole, read_frames(path, [0], 48)[0]):
        height, width = image.shape[:2]
        corners = image[[height // 4, -height // 4]][:, [width // 4, -width // 4]]
        assert np.abs(corners.astype(int) - CORNERS).max() < 30


@pytest.mark.parametrize(("width", "height"), [(65, 49), (1, 1), (17, 64)])
def test_odd_sizes_are_read(tmp_path, width, height):
    picture = np.full((height, width, 3), (200, 100, 50), np.uint8)
    path = write(tmp_path / "a.mkv", "ffv1", [picture] * 2, pix_fmt="yuv444p")
    for size in (None, 32):
        image = read_frames(path, [0], size)[0]
        assert image.shape == ((height, width, 3) if size is None else (size, size, 3))
        assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("size", [(64, 48), (16, 200)], ids=["shrink", "grow"])
def test_resizing_averages_areas_or_interpolates(tmp_path, size):
    rng = np.random.default_rng(1)
    source = cv2.GaussianBlur(rng.integers(0, 256, (96, 128, 3), np.uint8), (5, 5), 0)
    path = write(tmp_path / "a.mkv", "ffv1", [source], pix_fmt="bgr0")
    target = size[1]
    method = cv2.INTER_AREA if target < 96 else cv2.INTER_LINEAR
    expected = cv2.resize(source, (target, target), interpolation=method)
    assert np.abs(read_frames(path, [0], target)[0].astype(int) - expected).max() <= 3


def literal_rgb(y, u, v, kr, kb, full):
    """BT.601 or BT.709, limited or full range."""
    y = y / 255 if full else (y - 16) / 219
    u, v = ((c - 128) / (255 if full else 224) for c in (u, v))
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    return 255 * np.clip([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], 0, 1)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("space", "kr", "kb"), [(5, 0.299, 0.114), (1, 0.2126, 0.0722)])
def test_colours_follow_the_stream_s_matrix_and_range(tmp_path, space, kr, kb, full):
    path = tmp_path / "a.mp4"
    planes = np.array([120, 90, 170], np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, 1 + full
        frame = av.VideoFrame.from_ndarray(
            np.broadcast_to(planes[:, None, None], (3, 32, 32)).copy(), format="yuv444p"
        )
        frame.colorspace, frame.color_range = space, 1 + full
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = literal_rgb(*planes.astype(float), kr, kb, full)
    for size in (None, 20):
        assert np.abs(read_frames(path, [0], size)[0, 5, 5] - expected).max() <= 1.5


def test_frames_agree_with_pyav_and_opencv_on_real_videos(shared):
    for path in (
        shared / "videos/clips/arm_wrestling.mp4",
        shared / "videos/clips/playing_cricket.gif",
        next((shared / "videos/ut_interaction/kicking").glob("*.avi")),
    ):
        ours = read_frames(path, [0])[0].astype(int)
        with av.open(str(path)) as container:
            theirs = next(container.decode(video=0)).to_ndarray(format="rgb24")
        bgr = cv2.VideoCapture(str(path)).read()[1]
        for other in (theirs, bgr[..., ::-1]):
            assert np.abs(ours - other).mean() < 2.5  # their fast paths are dark by 1


def test_sparing_equals_full_decoding_on_real_videos(shared):
    paths = sorted((shared / "videos/ut_interaction").glob("*/*.avi"))[::20]
    for path in [*paths, shared / "videos/clips/arm_wrestling.mp4"]:
        times = 1.02 + np.arange(12) / 6
        np.testing.assert_array_equal(read_frames(path, times, 32), decoded_fully(path, times, 32))


def test_packed_b_frames_of_avi_files_can_be_spared_too(shared):
    # Frames 74 and 75 are in one packet, and only the second is wanted.
    path = shared / "videos/ut_interaction/punching/set1_seq08_043.avi"
    with VideoFile(path) as file:
        assert video._read_sparingly(file, np.arange(14) / 5, 32) is not None


def test_probe_tells_what_is_in_the_file(numbered_file):
    info = probe(numbered_file)
    assert (info.frames, info.width, info.height, info.rotation) == (60, 64, 48, 0)
    assert info.duration_s == pytest.approx(2, abs=0.005)
    assert info.codec in ("h264", "hevc", "mpeg4", "vp9", "png")


@pytest.mark.parametrize("name", ["a:b.mp4", "film ü %20 [1].mp4", "http:x.mp4"])
def test_any_file_name_is_read(tmp_path, name, monkeypatch):
    (write(tmp_path / "plain.mp4", frames=3)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).frames == 3
